"""Which paths a job sees, worked by hand on small trees."""

from __future__ import annotations

from pathlib import Path

from cloud_service.jobs.confinement.paths import home_environment, hub_caches, resolved, system_paths
from cloud_service.jobs.confinement.plan import ConfinementPlan


def test_links_are_followed_one_by_one_and_noted(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(tmp_path / "real")
    paths, links = resolved([tmp_path / "first" / "inner"])
    assert paths == (str(tmp_path / "real" / "inner"),)
    assert links == {str(tmp_path / "first"): "second", str(tmp_path / "second"): str(tmp_path / "real")}


def test_a_link_upwards_and_a_path_that_does_not_exist_are_resolved_as_far_as_they_go(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "up").symlink_to("../../absent")
    assert resolved([tmp_path / "a" / "b" / "up" / "file"])[0] == (str(tmp_path / "absent" / "file"),)


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    paths, links = resolved([tmp_path / "a"])
    assert len(paths) == 1
    assert set(links) == {str(tmp_path / "a"), str(tmp_path / "b")}


def test_what_lies_in_another_path_is_not_listed_again(tmp_path: Path) -> None:
    assert resolved([tmp_path / "a" / "b", tmp_path / "a", tmp_path / "ab"])[0] == (
        str(tmp_path / "a"),
        str(tmp_path / "ab"),
    )


def test_a_job_sees_the_caches_of_the_hub_but_not_the_token_beside_them() -> None:
    assert hub_caches({"HOME": "/h"}) == [Path("/h/.cache/huggingface/hub"), Path("/h/.cache/huggingface/datasets")]
    assert hub_caches({"HOME": "/h", "HF_HOME": "/big", "HF_HUB_CACHE": "/models"}) == [
        Path("/models"),
        Path("/big/datasets"),
    ]


def test_a_job_with_a_home_of_its_own_finds_the_caches_of_the_services_home() -> None:
    found = home_environment({"HOME": "/h"})
    assert found["HF_HUB_CACHE"] == "/h/.cache/huggingface/hub"
    assert found["HF_DATASETS_CACHE"] == "/h/.cache/huggingface/datasets"


def test_of_the_settings_of_the_system_no_keys_and_no_passwords_are_shown() -> None:
    shown = system_paths(["/bin/sh", "/", str(Path.home())], {"LD_LIBRARY_PATH": "relative::"})
    assert Path("/bin/sh") in shown
    for secret in (
        "/",
        "/etc",
        "/etc/shadow",
        "/etc/ssl",
        "/etc/ssl/private",
        "/root",
        "/home",
        "/var",
        str(Path.home()),
    ):
        assert Path(secret) not in shown


def test_a_plan_is_read_back_as_it_was_written() -> None:
    plan = ConfinementPlan(
        "user", 1, 65532, "loopback", ("/usr",), ("/opt",), ("/models",), ("/w", "/c"), ("/data",),
        (("/bin", "usr/bin"),), "/w", "/t", 64, {"HF_HUB_CACHE": "/c"}, {"DATA": (3, None)},
    )  # fmt: skip
    assert ConfinementPlan.from_json(plan.to_json()) == plan
