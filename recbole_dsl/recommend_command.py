"""``recbole-dsl recommend``: items for some users, or for all of them, from an artifact."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from .command_line import Parser, a_path, refuse_existing
from .errors import ConfigError
from .serving.recommender import UNKNOWN, SparseRecommender
from .serving.tables_out import ENDINGS, writer_of

USERS_AT_ONCE: Final = 256


def parser() -> Parser:
    """The options."""
    result = Parser(
        "recommend",
        "Recommend items from an artifact that 'recbole-dsl export' has written.",
        epilog="recbole-dsl recommend model/ --user 196 -k 5; recbole-dsl recommend model/ --all --out r.csv",
    )
    result.add_argument("artifact", type=a_path, help="the artifact's folder")
    result.add_argument("--user", action="append", default=[], help="a user, as in the data; may be repeated")
    result.add_argument(
        "--users-file", type=a_path, metavar="FILE", help="a text file with a user on each line"
    )
    result.add_argument("--all", action="store_true", help="all users; needs --out")
    result.add_argument("--similar-to", metavar="ITEM", help="items that are similar to one, in place of users")
    result.add_argument("-k", type=int, default=10, help="number of items (default: 10)")
    result.add_argument(
        "--keep-seen", action="store_true", help="recommend what users have in the data as well"
    )
    result.add_argument(
        "--candidates-file",
        type=a_path,
        metavar="FILE",
        help="choose from these items only, one on each line",
    )
    result.add_argument(
        "--unknown",
        choices=UNKNOWN,
        default="error",
        help="users that are not in the data: an error (default), or the most popular items",
    )
    result.add_argument("--out", type=a_path, metavar="FILE", help=f"write a file, one of {', '.join(ENDINGS)}")
    result.add_argument("--json", action="store_true", help="print a JSON object for each user")
    result.add_argument("--force", action="store_true", help="replace a file that exists")
    return result


def run(argv: Sequence[str]) -> None:
    """The command."""
    options = parser().read(argv)
    if options is None:
        return
    asked = [name for name in ("user", "users_file", "all", "similar_to") if getattr(options, name)]
    if len(asked) != 1:
        raise ConfigError(
            "recbole-dsl recommend: allowed is exactly one of --user, --users-file, --all and --similar-to."
        )
    _refuse_ignored(options)
    if options.all and options.out is None:
        raise ConfigError("recbole-dsl recommend: --all needs --out=FILE.")
    if options.out is not None:
        refuse_existing(options.out, "--out", options.force)
        writer_of(options.out)
    users = _lines(options.users_file, "--users-file") if options.users_file else None
    candidates = _lines(options.candidates_file, "--candidates-file") if options.candidates_file else None
    recommender = SparseRecommender.load(options.artifact)
    if options.similar_to is not None:
        answers = iter([(options.similar_to, *recommender.similar_items(options.similar_to, options.k))])
        _tell(answers, 1, options, "item")
        return
    if not options.keep_seen and not recommender.has_history:
        raise ConfigError(
            f"'{options.artifact}' does not hold what its users have seen; allowed is --keep-seen, or an "
            "artifact exported with --with-history."
        )
    everyone: Sequence[str] = recommender.users if options.all else options.user
    if users is not None:
        everyone = _names(users, recommender.users)
    if candidates is not None:
        candidates = _names(candidates, recommender.items)
    _tell(_answers(recommender, everyone, options, candidates), len(everyone), options, "user")


def _refuse_ignored(options: Any) -> None:
    """Raise ConfigError for an option that the others leave without a meaning."""
    of_users = {
        "--candidates-file": options.candidates_file is not None,
        "--keep-seen": options.keep_seen,
        "--unknown": options.unknown != "error",
    }
    for option, is_given in of_users.items():
        if is_given and options.similar_to is not None:
            raise ConfigError(
                f"recbole-dsl recommend: {option} is for recommendations; allowed with --similar-to are -k, "
                "--out, --json and --force."
            )
    if options.json and options.out is not None:
        raise ConfigError("recbole-dsl recommend: allowed is one of --json, which prints, and --out=FILE.")


def _answers(
    recommender: SparseRecommender, users: Sequence[str], options: Any, candidates: list[str] | None
) -> Iterator[tuple[str, list[str], Any]]:
    """(user, items, scores) of every user; few are held at once."""
    for first in range(0, len(users), USERS_AT_ONCE):
        some = list(users[first : first + USERS_AT_ONCE])
        found = recommender.recommend(
            some, options.k, not options.keep_seen, candidates=candidates, unknown=options.unknown
        )
        yield from zip(some, *found, strict=True)


def _tell(answers: Iterator[tuple[str, list[str], Any]], count: int, options: Any, asked: str) -> None:
    if options.out is not None:
        # The file has a column of items already.
        first = "similar_to" if options.similar_to is not None else asked
        with writer_of(options.out)(options.out, first) as write:
            for answer in _with_progress(answers, count):
                write(*answer)
        print(
            f"{options.out}: {count:,} {asked}{'' if count == 1 else 's'}, {options.out.stat().st_size:,} bytes"
        )
        return
    for name, items, scores in answers:
        if options.json:
            found = [{"item": item, "score": float(score)} for item, score in zip(items, scores, strict=True)]
            print(json.dumps({asked: name, "items": found}))
        else:
            print(_table(asked, name, items, scores))


def _table(asked: str, name: str, items: list[str], scores: Any) -> str:
    width = max([4, *map(len, items)])
    lines = [f"{asked} {name}", f"{'rank':>4}  {'item':<{width}}  score"]
    lines += [
        f"{rank:>4}  {item:<{width}}  {score:.6g}"
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
    ]
    return "\n".join(lines if items else [lines[0], "no items are left"]) + "\n"


def _with_progress(answers: Iterator[Any], count: int) -> Iterator[Any]:
    """A bar on a terminal, where tqdm is installed."""
    if not sys.stderr.isatty():
        return answers
    try:
        from tqdm import tqdm
    except ImportError:
        return answers
    return iter(tqdm(answers, total=count, unit=" users", dynamic_ncols=True))


def _lines(path: Path, option: str) -> list[str]:
    try:
        # As Windows's editors write it, too.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{option}={path} cannot be read ({reason}); allowed is a text file.") from None
    lines = [line for line in text.split("\n") if line.strip()]  # tokens may have other ends of lines
    if not lines:
        raise ConfigError(f"{option}={path} is empty; allowed is a text file with one name on each line.")
    return lines


def _names(lines: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names of a file's lines; spaces around them count only where they belong to one that is ``known``."""
    return [line if line in known else line.strip() for line in lines]
