"""`colakit serve`: classifiers over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import command
from colakit.errors import ColakitError
from colakit.utils.extras import import_extra

if TYPE_CHECKING:
    from colakit.serving.models import ModelStore

LOCAL = ("127.0.0.1", "::1", "localhost")


@command(
    "serve",
    {
        "--base": "base",
        "--host": "serve.host",
        "--port": "serve.port",
        "--max-batch-tokens": "serve.max_batch_tokens",
        "--max-wait-ms": "serve.max_wait_ms",
    },
)
def serve_command(
    session: Session,
    *,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]PATH...",
            help="Run, adapter, exported and transformers folders, students; NAME: the folder's.",
            show_default=False,
        ),
    ] = None,
    adapter_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder whose adapters are served, and from which others can be loaded at runtime.",
            metavar="DIR",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="COLAKIT_SERVE_TOKEN",
            metavar="TOKEN",
            help="Token that requests must carry.",
            show_envvar=True,
        ),
    ] = None,
    admin_token: Annotated[
        str | None,
        typer.Option(
            envvar="COLAKIT_SERVE_ADMIN_TOKEN",
            metavar="TOKEN",
            help="Token that allows adapters to be loaded and removed at runtime.",
            show_envvar=True,
        ),
    ] = None,
) -> dict[str, Any] | None:
    """Serve classifiers over HTTP: any number of adapters on one base, students, whole models.

    Adapters of one base share it, and one forward pass computes the sentences of different adapters. Folders
    of `colakit export` run in ONNX Runtime if they have an ONNX file. The server needs the packages of
    `pip install 'colakit[serve]'`. docs/serving.md has the requests.
    """
    began = time.monotonic()
    for package in ("starlette", "uvicorn", "prometheus_client"):
        import_extra(package, "serve")
    from colakit.serving.app import Service
    from colakit.serving.http import Access
    from colakit.serving.metrics import Metrics
    from colakit.serving.models import ModelStore
    from colakit.serving.server import listen, serve

    settings = session.settings.serve
    named = _named(models or [])
    if not named and adapter_dir is None:
        raise ColakitError("no model to serve", hint="Name a run folder, or an --adapter-dir.")
    if adapter_dir is not None and not adapter_dir.is_dir():
        raise ColakitError(f"--adapter-dir {adapter_dir}: is no folder", hint="Create it.")
    metrics = Metrics()
    base = session.settings.base if "base" in session.resolved.origins else None
    compute = session.compute
    if not session.dry_run:
        folder = session.cache_folder / "native"
        compute = compute.with_kernels(session.settings.cpu_kernels, folder, inference=True)
    store = ModelStore(settings, compute, base, metrics.on_batch)
    for name, path in named.items():
        store.load(name, path)
    if adapter_dir is not None:
        _load_folder(session, store, adapter_dir)
    listed = ", ".join(f"{model.name} ({model.kind})" for model in store.models.values()) or "no model yet"
    if session.dry_run:
        session.reporter.result(f"would serve {listed}")
        return {"models": list(store.models)}
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]

    if host not in LOCAL and token is None:
        session.reporter.warn(
            f"{host}: everybody who reaches this address can use the models, without a token; set --token, "
            "or listen on 127.0.0.1"
        )
    address = f"[{host}]" if ":" in host else host
    session.reporter.result(f"serves {listed} after {time.monotonic() - began:.1f} s")
    session.reporter.result(f"http://{address}:{port} (Ctrl-C stops)")
    service = Service(store, settings, Access(token or None, admin_token or None, adapter_dir), metrics)
    serve(service, listener)
    session.reporter.say("stopped; every accepted request was answered")
    return {"models": list(store.models)}


def _named(words: list[str]) -> dict[str, Path]:
    """Return name -> path of the arguments `[NAME=]PATH`."""
    named: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or "/" in name:
            path = word
            folder = Path(word).expanduser().resolve()
            name = folder.parent.name if folder.is_file() or folder.name == "adapter" else folder.name
        if name in named:
            raise ColakitError(
                f"{word}: another model has the name {name}", hint="Give each a name: NAME=PATH."
            )
        named[name] = Path(path)
    return named


def _load_folder(session: Session, store: ModelStore, folder: Path) -> None:
    """Serve every adapter in a folder; warn about those that are damaged."""
    from colakit.serving.models import resolve_inside

    for path in sorted(folder.iterdir()):
        if path.name in store.models or not (path / "adapter_config.json").is_file():
            continue
        try:
            store.load(path.name, resolve_inside(folder, path.name))
        except ColakitError as error:
            session.reporter.warn(f"{path.name}: is not served: {error.message}")
