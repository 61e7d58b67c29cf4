"""`gworker doctor`: what a set-up is made of, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gworker.cli import machine, output
from gworker.cli.exits import Code

Verdict = Literal["ok", "note", "wrong"]
_MARKS = {"ok": ("✓", "green"), "note": ("•", "yellow"), "wrong": ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `advice` says what to do about it."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


def doctor(*, as_json: bool) -> Code:
    """Look at everything and say what was found."""
    output.reserve_stdout()
    findings = [*_versions(), *_cluster(os.environ)]
    bad = any(finding.verdict == "wrong" for finding in findings)
    if as_json:
        output.emit(output.data({"ok": not bad, "findings": findings}))
    else:
        _print(findings)
    return Code.FAILED if bad else Code.OK


def _print(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=output.stream(), highlight=False, soft_wrap=True)
    for finding in findings:
        mark, colour = _MARKS[finding.verdict]
        console.print(Text.assemble((f"{mark} ", colour), (f"{finding.what}: ", "bold"), finding.found))
        if finding.advice:
            console.print(Text(f"    {finding.advice}"))


# --- this machine ------------------------------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    from gworker import __version__

    yield Finding("gworker", "ok", f"{__version__}, Python {platform.python_version()}, {sys.executable}")
    found = machine.packages("ray", "fastapi", "pydantic", "torch")
    yield Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


# --- the cluster -------------------------------------------------------------------------------------------------


def _cluster(environment: Mapping[str, str]) -> Iterator[Finding]:
    from gworker.router import cluster

    gpus = machine.gpus_of_the_driver()
    given = environment.get("RAY_ADDRESS", "")
    address = given if given not in ("", "auto", "local") else next(iter(cluster.clusters_here()), "")
    if given == "local" or not address:
        yield Finding(
            "Ray",
            "note",
            "no cluster runs here and RAY_ADDRESS names none: a program starts a Ray of its own at its first call",
            "to deploy apps, start one: ray start --head --dashboard-host 127.0.0.1",
        )
        yield Finding("GPUs of this machine", "ok", ", ".join(gpus) or "none")
        return
    wrong = cluster.why_unreachable(address)
    if wrong is None:
        wrong = _why_not_attached(environment)
    if wrong is not None:
        yield Finding("Ray", "wrong", f"{address} {wrong}", "start it (ray start --head), or correct RAY_ADDRESS")
        return
    import ray

    address = ray.get_runtime_context().gcs_address  # where several run here, the one that took us in
    yield from _attached(address, gpus)
    yield from _doors(address, environment)


def _why_not_attached(environment: Mapping[str, str]) -> str | None:
    from gworker.router import cluster

    try:
        cluster.attach()
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), "")
        asks = "token" in str(error).lower() or environment.get("RAY_AUTH_MODE") == "token"
        hint = " (RAY_AUTH_MODE and the token must be those of the cluster)" if asks else ""
        return f"does not take us in: {type(error).__name__}: {said}{hint}"
    return None


def _attached(address: str, gpus: Sequence[str]) -> Iterator[Finding]:
    import ray

    from gworker.router import deployment

    nodes = [n for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
    dead = len(ray.nodes()) - len(nodes)  # type: ignore[no-untyped-call]
    lost = f", {dead} lost" if dead else ""
    yield Finding("Ray", "ok", f"{address}: {len(nodes)} node{'s' if len(nodes) > 1 else ''}{lost}")
    whole: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: Mapping[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    shown = [f"{free.get(n, 0.0):g} of {whole[n]:g} {n}" for n in ("CPU", "GPU") if n in whole]
    yield Finding("free", "ok", ", ".join(shown))
    types = sorted(name.removeprefix("accelerator_type:") for name in whole if name.startswith("accelerator_type:"))
    if whole.get("GPU"):
        yield Finding("GPUs", "ok", f"{whole['GPU']:g}: {', '.join(types) or 'of no known type'}")
    elif gpus:
        yield Finding(
            "GPUs",
            "wrong",
            f"this machine has {', '.join(gpus)}, and the cluster none",
            "Ray counts GPUs when it starts: ray stop, then ray start --head with CUDA_VISIBLE_DEVICES unset",
        )
    else:
        yield Finding(
            "GPUs", "note", "none", 'classes with gpu=gw.Gpu(...) wait for one; "GWORKER_GPU=optional" waives'
        )
    yield Finding("deployed apps", "ok", ", ".join(deployment.deployed_apps()) or "none")


# --- who can come in ---------------------------------------------------------------------------------------------


def _doors(address: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the ports by which code gets into the cluster are open to other machines, and unguarded."""
    guarded = _token_mode(environment)
    yield Finding(
        "RAY_AUTH_MODE",
        "ok" if guarded else "note",
        "token: Ray asks for one" if guarded else "Ray lets in whoever reaches its ports",
        "" if guarded else "keep the ports to loopback or a private network, or set RAY_AUTH_MODE=token everywhere",
    )
    for what, port in _ports(address).items():
        places = [place for place in listening(port) if not _is_loopback(place)]
        if not places:
            yield Finding(what, "ok", f"port {port}: only from this machine")
        elif guarded:
            yield Finding(what, "ok", f"port {port}: open to others, who need the token")
        else:
            yield Finding(
                what,
                "wrong",
                f"port {port}: open to other machines ({', '.join(sorted(places))}), and whoever connects can run code",
                "start Ray with --node-ip-address 127.0.0.1 --dashboard-host 127.0.0.1, or set RAY_AUTH_MODE=token, or "
                "close the port in the firewall",
            )


def _token_mode(environment: Mapping[str, str]) -> bool:
    try:
        from ray import _raylet

        modes: Any = _raylet
        return bool(modes.get_authentication_mode() == modes.AuthenticationMode.TOKEN)
    except (ImportError, AttributeError):  # an older Ray
        return environment.get("RAY_AUTH_MODE", "").lower() == "token"


def _ports(address: str) -> dict[str, int]:
    """The ports of the head node, where this machine is it."""
    from ray._private import worker

    ports = {}
    gcs = address.rpartition(":")[2]
    if gcs.isdigit():
        ports["GCS (the cluster's own)"] = int(gcs)
    node = worker._global_node
    dashboard = str(getattr(node, "webui_url", "") or "").rpartition(":")[2].strip("/")
    if dashboard.isdigit():
        ports["dashboard and jobs"] = int(dashboard)
    ports["Ray client"] = 10001
    return {what: port for what, port in ports.items() if listening(port)}


def listening(port: int, proc: Path = Path("/proc/net")) -> set[str]:
    """The addresses of this machine on which somebody listens at a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            place, _, number = fields[1].partition(":")
            if fields[3] == "0A" and int(number, 16) == port:
                found.add(_address(place))
    return found


def _address(hexadecimal: str) -> str:
    """An address as the kernel writes it: words of four bytes, each the wrong way round."""
    words = bytes.fromhex(hexadecimal)
    raw = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _is_loopback(address: str) -> bool:
    import ipaddress

    found: Any = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)
