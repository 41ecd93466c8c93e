"""What may be exposed, and what a job's process may see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloud_service.settings import Settings, check_exposure, check_roots, job_environment, load_settings
from shared.errors import InvalidRequest


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, Path]:
    files = {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    for file in files.values():
        file.touch()
    return files


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_address_needs_neither_tls_nor_keys(host: str) -> None:
    check_exposure(Settings(host=host, is_auth_enabled=False))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])  # noqa: S104
def test_a_public_address_needs_tls_or_the_explicit_flag(host: str, certificate: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="insecure-public"):
        check_exposure(Settings(host=host))
    check_exposure(Settings(host=host, is_public_without_tls_allowed=True))
    check_exposure(Settings(host=host, **certificate))


def test_a_public_address_never_goes_without_keys(certificate: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="no-auth"):
        check_exposure(Settings(host="10.0.0.1", is_auth_enabled=False, **certificate))


def test_half_of_the_tls_files_and_absent_ones_are_refused(tmp_path: Path, certificate: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="only one of"):
        check_exposure(Settings(tls_key=certificate["tls_key"]))
    with pytest.raises(InvalidRequest, match="no file"):
        check_exposure(Settings(tls_certificate=tmp_path / "absent", tls_key=certificate["tls_key"]))


@pytest.mark.parametrize(("field", "option"), [("model_roots", "--model-root"), ("text_roots", "--text-root")])
def test_a_root_that_is_no_folder_is_refused_by_name(tmp_path: Path, field: str, option: str) -> None:
    (tmp_path / "file").touch()
    check_roots(Settings.model_validate({field: (tmp_path,)}))
    for root, what in ((tmp_path / "mistyped", "not there"), (tmp_path / "file", "not a folder")):
        with pytest.raises(InvalidRequest) as caught:
            check_roots(Settings.model_validate({field: (tmp_path, root)}))
        assert caught.value.found == f"{option} {root}, which is {what}"
        assert "mount" in caught.value.next_step


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZO_CLOUD_PORT", "9")
    monkeypatch.setenv("ZO_CLOUD_MODEL_ROOTS", '["/models"]')
    monkeypatch.setenv("ZO_CLOUD_HUB_TOKEN", "hf_secret")
    monkeypatch.setenv("ZO_CLOUD_HUB_NAMESPACES", '["Qwen/*"]')
    settings = Settings()
    assert (settings.port, settings.model_roots) == (9, (Path("/models"),))
    assert settings.hub_namespaces == ("Qwen/*",)
    assert settings.hub_token_text == "hf_secret"
    assert "hf_secret" not in repr(settings)
    assert Settings(port=10).port == 10


def test_a_bad_option_or_variable_is_a_wrong_call_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="port") as caught:
        load_settings(port=99_999)
    assert caught.value.param == "port"
    assert (caught.value.found, caught.value.needed) == ("port = 99999", "a number that is at most 65535")
    assert "ZO_CLOUD_PORT" in caught.value.next_step
    monkeypatch.setenv("ZO_CLOUD_MODEL_ROOTS", "/models")
    with pytest.raises(InvalidRequest, match="model_roots"):
        load_settings()


@pytest.mark.parametrize("name", ["ray_address", "ray_workers", "ray_worker_threads", "ray_worker_gpus"])
def test_an_option_of_rays_needs_rays_launcher(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value: object = "head:6379" if name == "ray_address" else 1
    with pytest.raises(InvalidRequest, match="with --launcher local") as caught:
        load_settings(**{name: value})
    assert caught.value.param == name
    assert getattr(load_settings(launcher="ray", **{name: value}), name) == value
    monkeypatch.setenv("ZO_CLOUD_LAUNCHER", "ray")
    assert getattr(load_settings(**{name: value}), name) == value
    with pytest.raises(InvalidRequest, match="with --launcher local"):
        load_settings(launcher="local", **{name: value})


def test_variables_of_rays_wait_for_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZO_CLOUD_RAY_WORKERS", "4")
    assert load_settings().launcher == "local"
    assert load_settings(launcher="ray").launcher_choice.ray_workers == 4


def test_a_job_finds_the_token_of_a_ray_cluster_but_does_not_see_it() -> None:
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/ray-token", "RAY_AUTH_TOKEN": "secret"}
    seen = job_environment(given)
    assert (seen["RAY_AUTH_MODE"], seen["RAY_AUTH_TOKEN_PATH"]) == ("token", "/run/ray-token")
    assert "secret" not in seen.values()


def test_a_jobs_libraries_ask_the_services_hub_and_no_other() -> None:
    inherited = {"HF_ENDPOINT": "https://elsewhere.example"}
    assert job_environment(inherited, hub_endpoint="https://hub.example")["HF_ENDPOINT"] == "https://hub.example"
    assert "HF_ENDPOINT" not in job_environment(inherited)


def test_a_job_sees_only_listed_variables_and_no_password_of_a_proxy() -> None:
    seen = job_environment(
        {
            "PATH": "/bin",
            "HF_TOKEN": "secret",
            "ZO_CLOUD_HUB_TOKEN": "secret",
            "HUGGING_FACE_HUB_TOKEN": "secret",
            "AWS_SESSION_TOKEN": "secret",
            "https_proxy": "http://user:secret@proxy",
            "HTTP_PROXY": "user:secret@proxy:3128",
            "http_proxy": "http://proxy:3128",
            "NO_PROXY": "localhost",
        }
    )
    assert "secret" not in str(seen)
    assert seen["PATH"] == "/bin"
    assert seen["http_proxy"] == "http://proxy:3128"
    assert seen["NO_PROXY"] == "localhost"
    assert "https_proxy" not in seen


def test_limits_of_connections_have_safe_defaults_and_no_proxy_is_trusted() -> None:
    settings = Settings()
    assert (settings.max_connections, settings.max_connections_per_address) == (512, 256)
    assert (settings.header_timeout_seconds, settings.body_timeout_seconds, settings.write_stall_seconds) == (
        10,
        30,
        60,
    )
    assert settings.forwarded_allow_ips == ()
    with pytest.raises(InvalidRequest, match="max_connections"):
        load_settings(max_connections=0)
    assert load_settings(forwarded_allow_ips=["10.0.0.0/8"]).forwarded_allow_ips == ("10.0.0.0/8",)


def test_the_threads_of_a_job_wait_asleep_unless_the_operator_says_otherwise() -> None:
    assert job_environment({})["OMP_WAIT_POLICY"] == "passive"
    assert job_environment({"OMP_WAIT_POLICY": "active"})["OMP_WAIT_POLICY"] == "active"
    assert job_environment({"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_folders_are_where_the_service_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        data=Path("cloud"), model_roots=(Path("models"),), text_roots=(Path("./texts"), Path("/srv/texts"))
    )
    assert settings.data == tmp_path / "cloud"
    assert settings.model_roots == (tmp_path / "models",)
    assert settings.text_roots == (tmp_path / "texts", Path("/srv/texts"))
