"""Train any RecBole model sparse: ``python run_recbole_dsl.py --model=LightGCN``."""

from recbole_dsl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
