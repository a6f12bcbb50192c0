"""Recommendations from an artifact, by original tokens."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from ..errors import ConfigError, RequestError, UnknownTokenError, nearest, on_one_line
from .artifact import Artifact, Manifest, read_artifact, refusal
from .encoders import ENCODERS, Graph
from .scorers import ACTIVATIONS, Scorer, VectorScorer
from .search import Found
from .table import SparseTable, some_rows
from .tokens import Tokens
from .top import best

_SCORES: Final = 1 << 22
"""Scores of candidates that are held at once."""

UNKNOWN: Final = ("error", "popular")
"""What to do about users that the artifact does not know."""

Recommendations = tuple[list[str], np.ndarray]
"""Tokens of items and their scores, the best first."""


class SparseRecommender:
    """A trained model that answers with items; made by :meth:`load`.

    It is not changed by answering, so threads may share it. Users and items are named by the tokens of the
    data (``"196"``; whole numbers may be given as such). The scores are the model's own, exact, with ties in
    the order of the data's numbering.
    """

    def __init__(
        self,
        scorer: Scorer,
        users: Tokens,
        items: Tokens,
        popularity: np.ndarray,
        seen: Sequence[Graph] | None,
        manifest: Manifest,
    ) -> None:
        self.scorer, self.manifest = scorer, manifest
        self._users, self._items, self._popularity, self._seen = users, items, popularity, seen

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | None = None) -> SparseRecommender:
        """Read an artifact and check it. Graph models compute their vectors here, once.

        Args:
            device: None searches with numpy on the processor. ``"cuda"``, or another device of torch's, holds
                the items there, dense, which pays for large batches on a GPU.

        Raises:
            ArtifactError: it is missing, damaged, of another version, or needs RecBole, which is not there.
        """
        return cls.of(read_artifact(folder), device)

    @classmethod
    def of(cls, artifact: Artifact, device: str | None = None) -> SparseRecommender:
        """The recommender of an artifact that has been read."""
        manifest, place = artifact.manifest, artifact.folder
        try:
            users, items = (Tokens.of_arrays(artifact.catalogue, name) for name in ("users", "items"))
            popularity = artifact.catalogue["popularity"]
            if popularity.dtype.kind != "u":
                raise ValueError("interactions are counted otherwise")
            graphs = _graphs(artifact)
        except (KeyError, ValueError):
            raise refusal(
                place, "its users, items or interactions are not as this package writes them"
            ) from None
        if (len(users), len(items)) != (manifest.users, manifest.items) or popularity.shape != (
            manifest.items,
        ):
            raise refusal(place, "it has other numbers of users and items than its manifest says")
        seen = [graphs[name] for name in ("graph", "history") if name in graphs] if manifest.history else None
        return cls(_scorer(artifact, graphs, device), users, items, popularity, seen, manifest)

    # --- questions -------------------------------------------------------------------------------

    def recommend(
        self,
        users: Any,
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Iterable[Any] | None = None,
        unknown: str = "error",
    ) -> Any:
        """The best items of a user, or of each of several.

        Args:
            users: a token, or a list of them.
            k: how many items, at least 1; fewer are returned where there are no more.
            exclude_seen: leave out the items that the user has in the data: in the training part, and in
                validation and test as well.
            candidates: tokens of the items to choose from; None chooses from all.
            unknown: ``"error"``, or ``"popular"``: users that are not in the data get the items with the
                most interactions in training, whose numbers are then the scores.

        Returns:
            (tokens, scores), or for a list of users two lists of them. Scores are float32, the best first.

        Raises:
            RequestError: a user or item is unknown, ``k`` is out of range, or what was seen is not known.
        """
        k = _whole(k, "k", 1)
        if unknown not in UNKNOWN:
            raise RequestError(f"unknown={unknown!r} is refused: allowed is one of {', '.join(UNKNOWN)}.")
        if exclude_seen and self._seen is None:
            raise RequestError(
                "The artifact does not hold what its users have seen; allowed is exclude_seen=False, or an "
                "artifact that was exported with --with-history."
            )
        single = isinstance(users, str | numbers.Integral)
        if not single and (isinstance(users, bytes) or not isinstance(users, Iterable)):
            raise RequestError(f"users={users!r} is refused: allowed is a token, or a list of them.")
        asked = [self._user(user, unknown) for user in ([users] if single else users)]
        chosen = None if candidates is None else self._chosen(candidates)
        found = self._found(asked, min(k, len(self._items) - 1), exclude_seen, chosen)
        named = [([self._items[int(n)] for n in items], scores) for items, scores in found]
        return named[0] if single else ([items for items, _ in named], [scores for _, scores in named])

    def similar_items(self, item: Any, k: int = 10) -> Recommendations:
        """The ``k`` items whose vectors point most nearly the same way, and the cosines.

        Raises:
            RequestError: the item is unknown, ``k`` is out of range, or the model has no vectors of items.
        """
        k = _whole(k, "k", 1)
        items, scores = self.scorer.similar(self._item(item), min(k, max(1, len(self._items) - 2)))
        return [self._items[int(n)] for n in items], scores

    def vectors(self) -> tuple[SparseTable | np.ndarray, SparseTable | np.ndarray]:
        """Vectors of users and of items, in the order of :attr:`users` and :attr:`items`.

        Their inner products are the scores, or, where the model has an activation, grow with them.

        Raises:
            RequestError: the model does not score by inner products.
        """
        if not isinstance(self.scorer, VectorScorer):
            raise RequestError(
                f"{self.manifest.model} does not score by inner products of vectors; allowed are models that "
                "numpy scores (recbole-dsl inspect says who does)."
            )
        users, items = self.scorer.users, self.scorer.vectors
        return some_rows(users, np.arange(1, users.shape[0])), some_rows(items, np.arange(1, items.shape[0]))

    @property
    def users(self) -> Sequence[str]:
        """Tokens of all users, in the data's order."""
        return _All(self._users)

    @property
    def items(self) -> Sequence[str]:
        """Tokens of all items, in the data's order."""
        return _All(self._items)

    @property
    def has_history(self) -> bool:
        """Whether the artifact holds what its users have seen."""
        return self._seen is not None

    # --- answers ---------------------------------------------------------------------------------

    def _found(
        self, users: list[int | None], k: int, exclude_seen: bool, chosen: np.ndarray | None
    ) -> list[Found]:
        known = np.array([user for user in users if user is not None], np.int64)
        excluded = [self._excluded(user, exclude_seen) for user in known]
        if not len(known):
            answers: list[Found] = []
        elif chosen is None:
            answers = self.scorer.top(known, k, excluded)
        else:
            answers = self._best_among(known, chosen, k, excluded)
        in_turn = iter(answers)
        popular = [self._most_popular(chosen, k)] if None in users else []
        return [popular[0] if user is None else next(in_turn) for user in users]

    def _best_among(
        self, users: np.ndarray, chosen: np.ndarray, k: int, excluded: list[np.ndarray]
    ) -> list[Found]:
        answers: list[Found] = []
        at_once = max(1, _SCORES // max(1, len(chosen)))
        for first in range(0, len(users), at_once):
            here = slice(first, first + at_once)
            rows = self.scorer.products(users[here], chosen)
            for scores, left_out in zip(rows, excluded[here], strict=True):
                scores[np.isin(chosen, left_out, assume_unique=True)] = -np.inf
                places, scores = best(scores, k)
                answers.append((chosen[places], self.scorer.score(scores)))
        return answers

    def _most_popular(self, chosen: np.ndarray | None, k: int) -> Found:
        among = np.arange(1, len(self._items)) if chosen is None else chosen
        places, scores = best(self._popularity[among].astype(np.float32), k)
        return among[places], scores

    def _excluded(self, user: int, exclude_seen: bool) -> np.ndarray:
        parts = [np.zeros(1, np.int64)]
        if exclude_seen:
            parts += [graph.row(user).astype(np.int64) for graph in self._seen or ()]
        return np.unique(np.concatenate(parts))

    def _user(self, user: Any, unknown: str) -> int | None:
        token = _token(user)
        number = self._users.number(token)
        if number is None and unknown == "error":
            raise UnknownTokenError(
                f"User {token[:50]!r} is not in the data; allowed is one of its {len(self._users) - 1} users "
                "(original tokens), or unknown='popular' for the most popular items."
            )
        return number

    def _item(self, item: Any) -> int:
        token = _token(item)
        number = self._items.number(token)
        if number is None:
            raise UnknownTokenError(
                f"Item {token[:50]!r} is not in the data; allowed is one of its {len(self._items) - 1} items "
                "(original tokens)."
            )
        return number

    def _chosen(self, candidates: Iterable[Any]) -> np.ndarray:
        if isinstance(candidates, str | bytes) or not isinstance(candidates, Iterable):
            raise RequestError(f"candidates={candidates!r} is refused: allowed is a list of items.")
        return np.unique(np.array([self._item(item) for item in candidates], np.int64))


class _All(Sequence[str]):
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens) - 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self._tokens[place % len(self) + 1]

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and self._tokens.number(token) is not None


def _token(name: Any) -> str:
    if type(name) is not bool and isinstance(name, numbers.Integral):
        return str(int(name))
    if not isinstance(name, str):
        raise RequestError(f"{name!r} is no token: allowed are texts and whole numbers.")
    try:
        name.encode()
    except UnicodeEncodeError:  # what a shell gives for bytes that are no UTF-8
        raise RequestError(f"{name!r} is no token: allowed are texts in UTF-8.") from None
    return name


def _whole(number: Any, name: str, least: int) -> int:
    if type(number) is bool or not isinstance(number, numbers.Integral) or number < least:
        raise RequestError(f"{name}={number!r} is refused: allowed is a whole number of at least {least}.")
    return int(number)


def _graphs(artifact: Artifact) -> dict[str, Graph]:
    """The artifact's interactions by name; KeyError or ValueError if they are not as they were written."""
    arrays, manifest = artifact.interactions, artifact.manifest
    graphs = {}
    for name in {key.partition("#")[0] for key in arrays}:
        counts, items = arrays[f"{name}#counts"], arrays[f"{name}#items"]
        unsigned = counts.dtype.kind == items.dtype.kind == "u" and items.ndim == 1
        if not unsigned or counts.shape != (manifest.users,):
            raise ValueError("interactions are of other types")
        if int(counts.sum(dtype=np.int64)) != len(items) or (len(items) and int(items.max()) >= manifest.items):
            raise ValueError("interactions name other items")
        graphs[name] = Graph.of_counts(counts, items, manifest.items)
    return graphs


def _check_device(device: str) -> None:
    try:
        import torch

        torch.empty(0, device=device)
    except (ImportError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={device!r} cannot be used ({on_one_line(error)}); allowed are devices that torch has, "
            "such as cuda, and none for numpy."
        ) from None


def _scorer(artifact: Artifact, graphs: dict[str, Graph], device: str | None) -> Scorer:
    manifest, place = artifact.manifest, artifact.folder
    if device is not None:
        _check_device(device)
    if manifest.form == "recbole":
        try:
            from .by_recbole import ModelScorer
        except ImportError as error:
            raise refusal(
                place, f"model {manifest.model} is scored by RecBole, which cannot be imported ({error})"
            ) from None
        return ModelScorer.of(artifact, graphs, device)
    if manifest.form != "vectors" or manifest.encoder not in ENCODERS:
        hint = nearest(manifest.encoder, ENCODERS)
        raise refusal(place, f"its form {manifest.form!r}, {manifest.encoder!r} is not known here{hint}")
    activation = manifest.options.get("activation")
    if not (activation is None or isinstance(activation, str)) or activation not in ACTIVATIONS:
        raise refusal(place, "its activation is not known here")
    try:
        scorer = VectorScorer.of(artifact.tensors, graphs, manifest.encoder, manifest.options, device)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise refusal(
            place, f"its tensors do not make a {manifest.model} ({type(error).__name__}: {error})"
        ) from None
    shapes = scorer.users.shape, scorer.vectors.shape
    if shapes[0][1] != shapes[1][1] or (shapes[0][0], shapes[1][0]) != (manifest.users, manifest.items):
        raise refusal(place, f"its vectors have the shapes {shapes[0]} and {shapes[1]}")
    return scorer
