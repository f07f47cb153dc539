"""A client of `colakit serve`, without torch:

client = Client("http://127.0.0.1:8000")
client.classify("The cat sleep.", model="cola")[0]["label"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import requests

from colakit.errors import EXIT_FAILED, ColakitError


class Client:
    """One server.

    Args:
        url: of the server.
        token: its `--token`, or `--admin-token` for `load` and `unload`.
        timeout: seconds without an answer after which a request fails.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", token: str | None = None, timeout: float = 60.0
    ) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self._session = requests.Session()
        if token is not None:
            self._session.headers["authorization"] = f"Bearer {token}"

    def classify(
        self, sentences: str | Sequence[str], model: str | None = None, *, truncate: bool = False
    ) -> list[dict[str, Any]]:
        """Return a `label` and the `probs` of each sentence; errors as of `request`."""
        body = {"input": [sentences] if isinstance(sentences, str) else list(sentences), "truncate": truncate}
        return self.request("POST", "/v1/classify", {**body, "model": model})["data"]

    def compare(
        self, sentences: str | Sequence[str], models: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Return model -> what `classify` returns, from one request."""
        body = {"input": sentences if isinstance(sentences, str) else list(sentences), "models": list(models)}
        answers = self.request("POST", "/v1/classify", body)["results"]
        return {answer["model"]: answer["data"] for answer in answers}

    def models(self) -> list[dict[str, Any]]:
        """Return the models served."""
        return self.request("GET", "/v1/models")["data"]

    def load(self, name: str, path: str | None = None) -> dict[str, Any]:
        """Load or replace a model from a folder below the server's `--adapter-dir`."""
        return self.request("POST", f"/v1/adapters/{name}", {} if path is None else {"path": path})

    def unload(self, name: str) -> dict[str, Any]:
        """Stop serving a model."""
        return self.request("DELETE", f"/v1/adapters/{name}")

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON that answers a request.

        Raises:
            ColakitError: if the server does not answer, or refuses.
        """
        try:
            answer = self._session.request(method, self.url + path, json=body, timeout=self.timeout)
            content = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise ColakitError(
                f"{self.url}: gives no answer ({type(error).__name__})",
                hint="Check that `colakit serve` runs there.",
                exit_code=EXIT_FAILED,
            ) from error
        if not answer.ok:
            raise ColakitError(f"{self.url}{path}: status {answer.status_code}: {content.get('message')}")
        return content
