"""Which folders and files a job's process needs: the operating system's, Python's, and where the hub's cache lies.

Everything else is absent from the job's file tree, so this list is what a job could read of the machine at most. Of
``/etc`` only what programs need to find libraries, names and certificates: no keys, no passwords. Of ``HF_HOME`` only
the caches: the operator's token lies beside them. Costs some hundred ``lstat``. Knows nothing about how it is enforced.
"""

from __future__ import annotations

import site
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import cloud_service
import shared

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/run/nvidia-persistenced")
_SYSTEM_SETTINGS = (
    "alternatives", "ca-certificates", "crypto-policies", "debian_version", "fonts", "group", "host.conf", "hosts",
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "locale.conf", "nsswitch.conf", "os-release", "passwd",
    "pki/ca-trust/extracted", "pki/tls/certs", "protocols", "resolv.conf", "services", "ssl/cert.pem", "ssl/certs",
    "ssl/openssl.cnf", "timezone",
)  # fmt: skip
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_NAMED_FILES = (*_CERTIFICATES, "RAY_AUTH_TOKEN_PATH")
_NAMED_FOLDERS = ("CUDA_HOME", "LD_LIBRARY_PATH")


def system_paths(command: Iterable[str], environment: Mapping[str, str]) -> list[Path]:
    """Return what running ``command`` with Python needs besides what the job is about.

    Args:
        command: Its words; those that are files are among the paths.
        environment: The job's, which names certificates and libraries.
    """
    packages = [Path(package.__path__[0]) for package in (cloud_service, shared)]
    python = [Path(folder) for folder in (sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages())]
    if site.ENABLE_USER_SITE:
        python.append(Path(site.getusersitepackages()))
    named = [Path(path) for name in _NAMED_FOLDERS for path in environment.get(name, "").split(":")]
    named += [Path(environment[name]) for name in _NAMED_FILES if name in environment]
    files = [Path(word) for word in command if Path(word).is_file()]
    settings = [Path("/etc") / name for name in _SYSTEM_SETTINGS]
    candidates = [*map(Path, _SYSTEM), *settings, *python, *packages, *files, *named]
    return [path for path in candidates if path.is_absolute() and path.exists() and path != Path("/")]


def package_folders() -> list[Path]:
    """Return the folders that Python finds this project's packages in."""
    return [Path(package.__path__[0]).parent for package in (cloud_service, shared)]


def hub_caches(environment: Mapping[str, str]) -> list[Path]:
    """Return the folders that the hub's libraries keep models and data sets in, whether they exist or not."""
    home = Path(environment.get("HOME") or Path.home())
    caches = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    hub_home = Path(environment.get("HF_HOME") or caches / "huggingface")
    models = environment.get("HF_HUB_CACHE") or hub_home / "hub"
    data_sets = environment.get("HF_DATASETS_CACHE") or hub_home / "datasets"
    return [Path(models).absolute(), Path(data_sets).absolute()]


def home_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that lead a job, whose home is a folder of its own, to what lies in the service's home."""
    models, data_sets = hub_caches(environment)
    caches = {"HF_HUB_CACHE": str(models), "HF_DATASETS_CACHE": str(data_sets)}
    return caches | ({"PYTHONUSERBASE": site.getuserbase()} if site.ENABLE_USER_SITE else {})


def resolved(paths: Iterable[Path]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the paths free of links, without those below another, and the links on the way with their targets."""
    links: dict[str, str] = {}
    found = list(dict.fromkeys(_resolve(path, links) for path in paths))
    outermost = (path for path in found if not any(parent in found for parent in path.parents))
    return tuple(map(str, outermost)), links


def _resolve(path: Path, links: dict[str, str]) -> Path:
    """Follow the links of an absolute path one by one, noting each."""
    done, waiting = Path("/"), [part for part in reversed(path.parts) if part != "/"]
    for _ in range(4096):  # more steps than any path that the kernel resolves
        if not waiting:
            break
        part = waiting.pop()
        if part == "..":
            done = done.parent
            continue
        step = done / part
        try:
            is_link = stat.S_ISLNK(step.lstat().st_mode)
        except OSError:
            is_link = False
        if not is_link:
            done = step
            continue
        target = step.readlink()
        links[str(step)] = str(target)
        waiting.extend(reversed([name for name in target.parts if name != "/"]))
        if target.is_absolute():
            done = Path("/")
    return done
