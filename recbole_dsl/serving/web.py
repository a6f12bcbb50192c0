"""A recommender over HTTP: an application of FastAPI, with a page to try it and an OpenAPI page."""

# Annotations are read when functions are defined, since FastAPI needs those that name the limits.
import html
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .. import __version__
from ..errors import RequestError, UnknownTokenError, nearest
from .recommender import SparseRecommender

LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]", "::1")
"""By which a request may name this machine."""

LONGEST_TOKEN: Final = 1000
LARGEST_BODY: Final = 1 << 20
"""Bytes of a request."""

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """The most items for a user, users of a request, candidates of a request, and items of a whole answer."""

    k: int = 1000
    batch: int = 1000
    candidates: int = 10_000
    items: int = 100_000

    @property
    def usual_k(self) -> int:
        """Items for a user where a request does not say."""
        return min(10, self.k)


Token = Annotated[str, Field(max_length=LONGEST_TOKEN)]


class Item(BaseModel):
    """An item and its score."""

    item: str
    score: float


class Recommendation(BaseModel):
    """The best items of a user, the best first."""

    user: str
    items: list[Item]


class Recommendations(BaseModel):
    """In the order of the request's users."""

    recommendations: list[Recommendation]


class Similar(BaseModel):
    """The items most like another one, with cosines."""

    item: str
    items: list[Item]


class Health(BaseModel):
    """What is served."""

    status: Literal["ok"]
    model: str
    dataset: str
    users: int
    items: int
    values: str
    density: float
    history: bool
    version: str


class Problem(BaseModel):
    """What was wrong with a request, in one sentence."""

    detail: str


def application(
    recommender: SparseRecommender,
    limits: Limits = Limits(),
    hosts: Sequence[str] = LOOPBACK,
) -> FastAPI:
    """The ASGI application.

    Args:
        hosts: what the ``Host`` of a request may be, ``*`` whatever it is; by default names of this machine, so
            that a page on another site cannot reach a server on localhost by a name of its own.
    """
    manifest = recommender.manifest
    problems: dict[int | str, dict[str, Any]] = {
        400: {"model": Problem}, 404: {"model": Problem}, 413: {"model": Problem}, 422: {"model": Problem},
    }  # fmt: skip
    app = FastAPIOffline(
        title=html.escape(f"{manifest.model} on {manifest.dataset}"),  # the page of /docs has it as it is
        version=__version__,
        description="Recommendations of a sparse model. Users and items are the tokens of its data.",
        redoc_url=None,
        dependencies=[Depends(_known_parameters)],
    )
    app.add_middleware(SmallBodies, largest=LARGEST_BODY)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    class Ask(BaseModel):
        """Users of a request, and what they want."""

        model_config = ConfigDict(extra="forbid")
        users: list[Token] = Field(min_length=1, max_length=limits.batch)
        k: int = Field(limits.usual_k, ge=1, le=limits.k, strict=True)
        exclude_seen: bool = recommender.has_history
        candidates: list[Token] | None = Field(None, max_length=limits.candidates)
        unknown: Literal["error", "popular"] = "error"

    @app.exception_handler(RequestError)
    def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404 if isinstance(error, UnknownTokenError) else 400)

    @app.exception_handler(RequestValidationError)
    def not_valid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _first_problem(error.errors())}, 422)

    @app.get("/health")
    def health() -> Health:
        """Whether the server answers, and what it serves."""
        return Health(
            status="ok", model=manifest.model, dataset=manifest.dataset, users=len(recommender.users),
            items=len(recommender.items), values=manifest.values, density=manifest.density,
            history=recommender.has_history, version=__version__,
        )  # fmt: skip

    @app.get("/recommend", responses=problems)
    def recommend(
        user: Annotated[str, Query(max_length=LONGEST_TOKEN)],
        k: Annotated[int, Query(ge=1, le=limits.k)] = limits.usual_k,
        exclude_seen: bool = recommender.has_history,
        unknown: Literal["error", "popular"] = "error",
    ) -> Recommendation:
        """The best items of one user."""
        found = recommender.recommend(user, k, exclude_seen, unknown=unknown)
        return Recommendation(user=user, items=_items(*found))

    @app.post("/recommend", responses=problems)
    def recommend_several(ask: Ask) -> Recommendations:
        """The best items of several users, all or some candidates."""
        most = len(recommender.items) if ask.candidates is None else len(set(ask.candidates))
        wanted = len(ask.users) * min(ask.k, most)
        if wanted > limits.items:
            raise RequestError(
                f"{len(ask.users)} users with k={ask.k} are {wanted} items: allowed are at most {limits.items} "
                "in one answer."
            )
        found = recommender.recommend(ask.users, ask.k, ask.exclude_seen, ask.candidates, ask.unknown)
        return Recommendations(
            recommendations=[
                Recommendation(user=user, items=_items(items, scores))
                for user, items, scores in zip(ask.users, *found, strict=True)
            ]
        )

    @app.get("/similar", responses=problems)
    def similar(
        item: Annotated[str, Query(max_length=LONGEST_TOKEN)],
        k: Annotated[int, Query(ge=1, le=limits.k)] = limits.usual_k,
    ) -> Similar:
        """The items whose vectors point most nearly the same way."""
        return Similar(item=item, items=_items(*recommender.similar_items(item, k)))

    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("USUAL_K", str(limits.usual_k)).replace("LARGEST_K", str(limits.k))

    @app.get("/", include_in_schema=False)
    def home(user: str = "", item: str = "", k: str = "") -> HTMLResponse:
        # The page's script reads them from its address.
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return app


def _known_parameters(request: Request) -> None:
    """Refuse what would be ignored: a name that the path does not take, a value of one given twice."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if len(request.query_params.getlist(name)) > 1:
            raise RequestError(f"The parameter {name!r} is given more than once: allowed is one value.")
        if name not in known:
            raise RequestError(
                f"The parameter {name!r} is unknown{nearest(name, known)}: allowed "
                + (f"are {', '.join(sorted(known))}." if known else "is none.")
            )


def _first_problem(problems: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong and where, of the first place, without what was sent, which may be anything."""
    place = ".".join(str(part) for part in problems[0]["loc"])
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"The request is refused at {place}{more}: {problems[0]['msg']}."


def _items(items: list[str], scores: Any) -> list[Item]:
    return [Item(item=item, score=float(score)) for item, score in zip(items, scores, strict=True)]


class SmallBodies:
    """Refuses requests whose bodies are too large, whatever they say of their length."""

    def __init__(self, app: Any, largest: int) -> None:
        self._app, self._largest = app, largest

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Count what is received."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._largest:
            await self._refuse(scope, receive, send)
            return
        received = 0

        async def counted() -> _Scope:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._largest:
                raise HTTPException(413, self._sentence)
            return message

        await self._app(scope, counted, send)

    @property
    def _sentence(self) -> str:
        return f"The request is too large: allowed are {self._largest} bytes."

    async def _refuse(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        await JSONResponse({"detail": self._sentence}, 413)(scope, receive, send)
