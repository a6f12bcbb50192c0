"""A generated dataset, small enough to train every model on and with the fields that any of them asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NAME = "tiny"
USERS, ITEMS, ENTITIES, RELATIONS = 72, 110, 140, 6
INTERACTIONS_PER_USER = 24
EMBEDDING = 16
"""Columns of the pre-trained entity and relation vectors, and of the models' own tables in the tests."""


def write_tiny(folder: Path) -> Path:
    """Write ``tiny/tiny.*`` below ``folder`` (RecBole's atomic files) and return ``folder``.

    Users and items have latent tastes, so that there is something to learn; every user has 24
    interactions; items have a class and a price, most are entities of a knowledge graph.
    """
    draw = np.random.default_rng(7)
    home = folder / NAME
    home.mkdir(parents=True, exist_ok=True)
    tastes, traits = draw.normal(size=(USERS, 4)), draw.normal(size=(ITEMS, 4))
    rows = []
    for user in range(USERS):
        liking = tastes[user] @ traits.T + draw.gumbel(size=ITEMS)
        items = np.argsort(-liking)[:INTERACTIONS_PER_USER]
        middle = float(np.median(liking[items]))
        draw.shuffle(items)
        for moment, item in enumerate(items):
            rating = int(np.clip(round(3.5 + liking[item] - middle), 1, 5))
            rows.append(f"u{user}\ti{item}\t{rating}\t{1000 * user + moment}")
    _write(home, "inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", rows)
    _write(
        home, "user", "user_id:token\tage:token\tgender:token\toccupation:token",
        [f"u{u}\t{20 + u % 30}\t{'FM'[u % 2]}\tjob{u % 7}" for u in range(USERS)],
    )  # fmt: skip
    _write(
        home, "item", "item_id:token\trelease_year:token\tclass:token_seq\tprice:float",
        [f"i{i}\t{1960 + i % 40}\tkind{i % 9} kind{i % 4}\t{1 + i % 13}.5" for i in range(ITEMS)],
    )  # fmt: skip
    _write(
        home, "kg", "head_id:token\trelation_id:token\ttail_id:token",
        [
            f"e{head}\tr{draw.integers(RELATIONS)}\te{draw.integers(ENTITIES)}"
            for head in range(ENTITIES)
            for _ in range(4)
        ],
    )  # fmt: skip
    linked = range(ITEMS - 10)
    _write(home, "link", "item_id:token\tentity_id:token", [f"i{i}\te{i}" for i in linked])
    for suffix, count, letter in (("ent", ENTITIES, "e"), ("rel", RELATIONS, "r")):
        vectors = draw.normal(scale=0.1, size=(count, EMBEDDING))
        _write(
            home, suffix, f"{suffix}_id:token\t{suffix}_emb:float_seq",
            [f"{letter}{n}\t{' '.join(f'{x:.5f}' for x in v)}" for n, v in enumerate(vectors)],
        )  # fmt: skip
    return folder


def _write(home: Path, suffix: str, header: str, rows: list[str]) -> None:
    (home / f"{NAME}.{suffix}").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
