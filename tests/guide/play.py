"""Runs the snippets of the user guide as one script, and writes down what it saw: `play.py IMPORT_NAME GUIDE FACTS`.

The snippets come from the Markdown file and run unchanged, in this `__main__`, one after the other, statement by
statement. This file supplies only what the guide leaves out: the globals `torch`, `load_model` and
`load_embedding_model`, and a `model` on the classes whose snippets take one for granted. `SUPPLIED` says which.

Started with a cluster of its own making (`GUIDE_CLUSTER=fake-gpus`) or with none, so that the first call starts one.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # noqa: F401  # a global that the guide's on_exit hook uses

HERE = os.getcwd()
LEDGER = os.path.join(HERE, "ledger")
LOST = os.path.join(HERE, "lost-by-pid-")


def note(*words: object) -> None:
    """Append a line to the ledger, from whichever process this is."""
    fd = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (" ".join(map(str, (os.getpid(), *words))) + "\n").encode())
    os.close(fd)


class Llama:
    """A language model that writes down what is done to it."""

    def __init__(self, path: str) -> None:
        note("llm load", path)

    def cuda(self) -> None:
        note("llm cuda")

    def generate(self, prompt: str) -> str:
        note("llm generate", prompt)
        return f"{prompt} ... said process {os.getpid()}"

    def __del__(self) -> None:
        note("llm del")


def load_model(path: str) -> Llama:
    """What the guide's LLMServer calls in on_enter."""
    return Llama(path)


class Meeting:
    """An embedding model whose first sixteen callers wait for each other: fewer at a time would never get through."""

    def __init__(self) -> None:
        self.present = self.most = 0
        self.all_here = asyncio.Event()

    async def aencode(self, text: str) -> list[float]:
        self.present += 1
        self.most = max(self.most, self.present)
        if text.startswith("together"):
            if self.present == 16:
                self.all_here.set()
            await self.all_here.wait()
        await asyncio.sleep(0.01)
        self.present -= 1
        return [float(os.getpid()), float(self.most)]


def load_embedding_model() -> Meeting:
    """What the guide's EmbedServer calls in on_enter."""
    return Meeting()


class LazyMiniLM:
    """The packaged all-MiniLM-L6-v2, loaded in the worker at first use; writes down each batch."""

    def encode(self, texts: list[str]) -> Any:
        from sentence_transformers import SentenceTransformer

        if "model" not in self.__dict__:
            self.model = SentenceTransformer("all-MiniLM-L6-v2")
        note("batch", len(texts))
        return self.model.encode(texts)


class FixedScore:
    """A classifier that is 60 % sure of everything."""

    def predict(self, text: str) -> float:
        return 0.6


def model_unless_lost() -> property:
    """A model that is there until somebody makes a file with the process's id in its name."""

    def look(self: Any) -> object:
        return None if os.path.exists(LOST + str(os.getpid())) else "a model"

    return property(look)


SUPPLIED: dict[str, Callable[[], Any]] = {
    "BatchEmbedder": LazyMiniLM,
    "Model": model_unless_lost,
    "Classifier": FixedScore,
}


def snippets(guide: str) -> list[str]:
    """The Python snippets of the guide, in order."""
    return re.findall(r"^```python\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)


def play(snippet: str, world: dict[str, Any]) -> None:
    """Run a snippet statement by statement, giving each class that lacks a model one as soon as it is defined."""
    for statement in ast.parse(snippet, "class-tasks.md").body:
        code = compile(ast.Module([statement], []), "class-tasks.md", "exec")
        exec(code, world)
        if isinstance(statement, ast.ClassDef) and statement.name in SUPPLIED:
            world[statement.name].user_cls.model = SUPPLIED[statement.name]()


def until(condition: Callable[[], Any], timeout_s: float) -> Any:
    """Wait for a condition."""
    end = time.monotonic() + timeout_s
    while not (seen := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:g} s: {condition}")
        time.sleep(0.1)
    return seen


class Player:
    """Uses the classes that the snippets have defined."""

    def __init__(self, world: dict[str, Any]) -> None:
        self.world = world
        self.facts: dict[str, Any] = {"driver": os.getpid()}
        self.began = 0.0
        self.served = 0
        self.replaced = threading.Event()

    def ready(self, name: str) -> list[int]:
        """Process ids of the workers of a class that serve."""
        status = self.world["app"].status()
        with contextlib.suppress(KeyError):
            return [w.pid for w in status.pool(name).workers if w.state == "READY"]
        return []

    def start_probed(self) -> int:
        """Bring up the class with the probe, and make its health fail from now on."""
        model = self.world["Model"]()
        answers = [model.predict.remote([1.0]), model.health.remote()]
        (pid,) = self.ready("Model")
        Path(LOST + str(pid)).touch()
        self.began = time.monotonic()
        self.facts["probe"] = {"answers": answers, "sick": model.health.remote(), "first": pid}
        threading.Thread(target=self.keep_calling, name="keep-calling", daemon=True).start()
        return int(pid)

    def keep_calling(self) -> None:
        """Call the probed class once in a while: an idle worker would be let go before its probe has failed thrice."""
        model = self.world["Model"]()
        while not self.replaced.wait(0.5):
            model.predict.remote([1.0])
            self.served += 1

    def await_restart(self, first: int) -> None:
        """Wait until the probe has found out; every call is served meanwhile."""
        now = until(lambda: [pid for pid in self.ready("Model") if pid != first], 150.0)
        after_s = time.monotonic() - self.began
        served = self.served
        until(lambda: self.served > served, 10.0)
        self.replaced.set()
        self.facts["probe"] |= {
            "after_s": after_s,
            "now": now,
            "healthy": self.world["Model"]().health.remote(),
            "restarts": self.world["app"].status().pool("Model").restarts,
        }

    def use_others(self) -> None:
        """Call what the other snippets define."""
        world = self.world
        embedder = world["Embedder"]()
        texts = ["The cat sat on the mat.", "A feline rested on the rug.", "Interest rates rose again."]
        self.facts["embedder"] = {"vectors": embedder.embed.remote(texts), "pids": self.ready("Embedder")}

        llm = world["LLMServer"]()
        self.facts["llm"] = {"said": [llm.generate.remote(p) for p in ("one", "two")], "pids": self.ready("LLMServer")}

        server = world["EmbedServer"]()
        server.embed.remote("warm up")
        together = [call.get() for call in [server.embed.spawn(f"together {i}") for i in range(16)]]
        crowd = list(server.embed.map([f"text {i}" for i in range(60)]))
        self.facts["concurrent"] = {"together": together, "crowd": crowd}

        batched = world["BatchEmbedder"]()
        many = texts * 32
        self.facts["batched"] = {"vectors": list(batched.embed.map(many)), "texts": len(many)}

        classifier = world["Classifier"]
        self.facts["classifier"] = {
            "at 0.7": world["result"],
            "default": classifier().classify.remote("great product!"),
            "at 0.55": classifier(threshold=0.55).classify.remote("great product!"),
            "workers": len(self.ready("Classifier")),
        }


def main() -> None:
    """Play the guide, use its classes, leave what was seen in the file FACTS."""
    import_name, guide, facts = sys.argv[1:]
    if os.environ.get("GUIDE_CLUSTER") == "fake-gpus":
        import ray

        resources = {"accelerator_type:A100": 8, "accelerator_type:H100": 2}
        ray.init("local", num_cpus=16, num_gpus=10, resources=resources, include_dashboard=False)
    world = vars(sys.modules["__main__"])
    for snippet in snippets(Path(guide).read_text()):
        play(snippet.replace("import gworker_client as gw", f"import {import_name} as gw"), world)
    player = Player(world)
    first = player.start_probed()
    player.use_others()
    Path(facts).write_text(json.dumps(player.facts))
    player.await_restart(first)
    Path(facts).write_text(json.dumps(player.facts))
    # And then the script just ends: what drains the workers is gworker's own exit hook.


if __name__ == "__main__":
    main()
