"""What a wheel gets by subclassing `Section`, and what happens when two wheels want one key."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from ds_core.config import Auto, Config, DTypeName, Facts, Moved, Refused, Section, load, resolve
from ds_core.config.registry import Claim, Registry
from ds_core.errors import ConfigError, MissingWheelError, PluginConflictError, PluginError
from ds_core.hooks import ConfigSection


class Target(Section):
    device: Literal["none", "cpu", "nvme"] = "none"
    path: Path | None = None


class Group(Section):
    bits: int
    modules: tuple[str, ...] = ("*",)


class Feature(Section):
    """A wheel's section."""

    stage: Annotated[int, Field(ge=0, le=3)] = 0
    """What is sharded."""
    bucket: Annotated[int, Field(ge=1)] = 500_000_000
    overlap: bool | None = None
    strategy: Literal["auto", "step"] = "step"
    target: Target = Field(default_factory=Target)
    maybe: Target | None = None
    groups: dict[str, Group] = Field(default_factory=dict)
    sizes: list[int] = Field(default_factory=list)
    interval: int | Literal["auto"] = "auto"
    kind: DTypeName | None = None

    aliases: ClassVar[Mapping[str, str]] = {"stage3_bucket": "bucket"}
    legacy_keys: ClassVar[Mapping[str, str | Moved]] = {
        "old_bucket": "bucket",
        "cpu_offload": Moved("target.device", {True: "cpu", False: "none"}),
    }
    legacy_values: ClassVar[tuple[tuple[Any, Mapping[str, Any]], ...]] = ((True, {"stage": 1}), (False, {"stage": 0}))
    refused_keys: ClassVar[Mapping[str, str | Refused]] = {
        "old_way": "there is one way; take it out",
        "writer": Refused("not yet", idle=("none", 1_000), keys={"type": None}),
        "offload": Refused("not yet", idle=({"device": "none"},)),
    }

    def auto(self, key: str, facts: Facts) -> Auto | None:
        if key == "overlap":
            return Auto(self.stage == 3, f"stage is {self.stage}")
        if key == "bucket" and facts.hidden_size is not None:
            return Auto(facts.hidden_size**2, f"hidden_size {facts.hidden_size} squared")
        return None

    def check(self, config: Config) -> Iterable[str]:
        if self.stage == 3 and config.get("fp16.enabled"):
            yield "feature.stage 3 and fp16.enabled exclude each other"


@pytest.fixture(autouse=True)
def _fake_wheel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = types.ModuleType("fake_wheel_config")
    module.Feature = Feature  # type: ignore[attr-defined]
    module.Target = Target  # type: ignore[attr-defined]
    module.Plain = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_wheel_config", module)
    yield


SECTION = ConfigSection("feature", "fake_wheel_config:Feature", legacy_keys={"feature_target": "feature.target"})


ONE_RANK = Facts(1, 1)


def feature(value: Any, facts: Facts = ONE_RANK, **others: Any) -> tuple[Feature, Config]:
    raw = load({"train_batch_size": 1, "feature": value, **others}, sections=[Claim(SECTION, "ds-feature", "1.0")])
    config = resolve(raw, facts)
    section = config["feature"]
    assert isinstance(section, Feature)
    return section, config


def problem(value: Any, **others: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        feature(value, **others)
    return str(caught.value).splitlines()[0]


def test_integers_in_scientific_notation() -> None:
    section, _ = feature({"bucket": 5e8, "sizes": [1e3, 2]})
    assert (section.bucket, type(section.bucket)) == (500_000_000, int)
    assert section.sizes == [1000, 2]
    assert Feature(bucket=2e6).bucket == 2_000_000  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"stage": True}, "feature.stage must be an integer, got true"),
        ({"stage": 4}, "feature.stage must be at most 3, got 4"),
        ({"stage": -1}, "feature.stage must be at least 0, got -1"),
        ({"bucket": 1.5}, "feature.bucket must be an integer, got 1.5"),
        ({"bucket": "5e8"}, 'feature.bucket must be an integer, got "5e8"'),
        ({"overlap": 1}, "feature.overlap must be true or false, got 1"),
        ({"target": 3}, "feature.target must be an object, got 3"),
        ({"target": {"device": "gpu"}}, "feature.target.device must be 'none', 'cpu' or 'nvme', got \"gpu\""),
        ({"target": {"devise": "cpu"}}, "feature.target.devise is not a known key (its value: \"cpu\"). Did you mean"
         " 'device'? feature.target takes device, path."),
        ({"groups": {"a": {"bits": 4, "module": 1}}}, "feature.groups.a.module is not a known key (its value: 1)."
         " Did you mean 'modules'? feature.groups.a takes bits, modules."),
        ({"groups": {"a": {}}}, "feature.groups.a.bits is required and is not set"),
        ({"groups": {"a": {"bits": "auto"}}}, "feature.groups.a.bits is required and is not set; it cannot be found"
         " automatically, give a value"),
        ({"sizes": [1, "x"]}, 'feature.sizes.1 must be an integer, got "x"'),
        ({"interval": "never"}, "feature.interval must be an integer or 'auto', got \"never\""),
        ({"kind": "int8"}, "feature.kind must be 'float32', 'float16' or 'bfloat16', got \"int8\""),
        ({"old_way": True}, "feature.old_way is not served: there is one way; take it out"),
        ({"old_way": 0}, "feature.old_way is not served: there is one way; take it out"),
        ({"writer": {"typ": 1}}, "feature.writer.typ is not a known key (its value: 1). Did you mean 'type'?"
         " feature.writer takes type."),
        ({"writer": {"type": "x"}}, "feature.writer is not served: not yet"),
        ({"offload": {"device": "cpu"}}, "feature.offload is not served: not yet"),
        ({"bucket": 1, "stage3_bucket": 2}, "feature.stage3_bucket and feature.bucket are set to different values and"
         " mean the same; keep feature.bucket"),
        ({"cpu_offload": 7}, "feature.cpu_offload must be one of true, false, got 7"),
        ("on", 'feature must be an object, got "on"'),
        (1, "feature must be an object, got 1"),
        ([], "feature must be an object, got []"),
    ],
)  # fmt: skip
def test_messages_say_key_value_allowed_and_nearest(value: Any, message: str) -> None:
    assert problem(value) == message


def test_idle_values_of_refused_keys_pass() -> None:
    feature({"old_way": False, "writer": 1e3, "offload": {"device": "none", "pin_memory": True}})
    feature({"old_way": None, "writer": {"type": False}, "offload": {}})
    feature({"old_way": "auto", "writer": "none"})


def test_aliases_and_old_keys(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        section, config = feature({"stage3_bucket": 7, "cpu_offload": True})
    assert (section.bucket, section.target.device) == (7, "cpu")
    assert str(config.origin("feature.target.device")) == "from the config dict, as feature.cpu_offload"
    assert len(caplog.records) == 1
    assert "feature.cpu_offload is an old key, read as feature.target.device" in caplog.text
    assert "stage3_bucket" not in caplog.text
    assert feature({"old_bucket": 9, "bucket": 9})[0].bucket == 9


def test_old_forms_of_a_whole_section_and_old_top_level_keys() -> None:
    assert feature(True)[0].stage == 1
    assert feature(False)[0].stage == 0
    assert feature({"stage": 2}, feature_target={"device": "cpu"})[0].target.device == "cpu"


def test_a_key_with_a_dot_fills_in_what_its_section_leaves_open(caplog: pytest.LogCaptureFixture) -> None:
    dotted = {"feature.stage3_bucket": 7, "feature.stage": 1}
    assert feature({"old_bucket": "auto"}, **dotted)[0].bucket == 7
    with caplog.at_level(logging.WARNING):
        assert feature({"old_bucket": 9}, **dotted)[0].bucket == 9
    assert "feature.stage3_bucket: 7 at the top level counts for nothing beside feature itself" in caplog.text
    assert "feature.stage at the top level is read as if it stood inside feature" in caplog.text
    with pytest.raises(ConfigError, match=r"^feature\.bucke is not a known key .*Did you mean 'bucket'"):
        feature({"stage": 1}, **{"feature.bucke": 7})


def test_auto_is_asked_once_and_explained() -> None:
    section, config = feature({"stage": 3, "bucket": "auto"}, Facts(1, 1, hidden_size=64))
    assert (section.bucket, section.overlap) == (4096, True)
    assert str(config.origin("feature.bucket")) == "auto: hidden_size 64 squared"
    assert str(config.origin("feature.overlap")) == "derived: stage is 3"
    assert feature({"overlap": None})[1].origin("feature.overlap").kind == "auto"
    assert feature({"overlap": True})[1].origin("feature.overlap").kind == "file"
    section, config = feature({"bucket": "auto"})
    assert section.bucket == 500_000_000
    assert str(config.origin("feature.bucket")) == "auto: the default"


def test_auto_where_it_is_a_value_of_its_own_stays() -> None:
    section, config = feature({"strategy": "auto", "interval": "auto"})
    assert (section.strategy, section.interval) == ("auto", "auto")
    assert config.origin("feature.strategy").kind == "file"


def test_nested_sections_paths_and_tuples() -> None:
    section, config = feature(
        {"target": {"path": "/data"}, "maybe": None, "groups": {"a": {"bits": 4, "modules": ["x", "y"]}}}
    )
    assert section.target.path == Path("/data")
    assert section.maybe is None
    assert section.groups["a"].modules == ("x", "y")
    assert config.origin("feature.groups.a.bits").kind == "file"
    assert config.origin("feature.target.device").kind == "default"
    assert config.to_dict()["feature"]["groups"] == {"a": {"bits": 4, "modules": ["x", "y"]}}
    assert feature({"maybe": {"device": "cpu"}})[0].maybe == Target(device="cpu")


def test_a_section_checks_other_sections() -> None:
    message = "feature.stage 3 and fp16.enabled exclude each other"
    assert problem({"stage": 3}, fp16={"enabled": True}) == message


def test_direct_construction_is_as_strict() -> None:
    for bad in ({"stage": True}, {"stage": "1"}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            Feature(**bad)  # type: ignore[arg-type]


def test_a_wheel_takes_precedence_over_the_catalog() -> None:
    with pytest.raises(MissingWheelError, match="pipeline asks for ds-pipeline, which is not installed"):
        load({"pipeline": {"stages": 2}}, sections=())
    claim = Claim(ConfigSection("pipeline", "fake_wheel_config:Feature"), "ds-pipeline")
    raw = load({"train_batch_size": 1, "pipeline": {"stage": 2}}, sections=[claim])
    assert resolve(raw, Facts(1, 1))["pipeline"].stage == 2


@pytest.mark.parametrize("key", ["feature", "fp16", "bfloat16", "gradient_clipping", "feature_target"])
def test_two_wheels_with_one_key_conflict(key: str) -> None:
    mine = Claim(SECTION, "ds-feature", "1.0", "/one")
    other = Claim(ConfigSection(key, "fake_wheel_config:Target"), "ds-other", "2.0", "/two")
    with pytest.raises(PluginConflictError) as caught:
        load({}, sections=[mine, other])
    assert key in str(caught.value)
    assert "ds-other 2.0 (/two)" in str(caught.value)


def test_a_broken_section_matters_only_when_it_is_written(caplog: pytest.LogCaptureFixture) -> None:
    broken = Claim(ConfigSection("broken", "no_such_module_at_all:Section"), "ds-broken")
    with pytest.raises(PluginError):
        load({"broken": {}}, sections=[broken])
    with caplog.at_level(logging.WARNING):
        config = resolve(load({"train_batch_size": 1}, sections=[broken]), Facts(1, 1))
    assert "config section broken is left out" in caplog.text
    assert "broken" not in config
    plain = Claim(ConfigSection("plain", "fake_wheel_config:Plain"), "ds-plain")
    with pytest.raises(PluginError, match=r"must be a subclass of ds_core\.config\.Section"):
        load({"plain": {}}, sections=[plain])


def test_an_installed_wheel_that_does_not_serve_the_key_is_said_to_be_installed() -> None:
    registry = Registry([], {"ds-zero": "0.1.0"})
    reason = registry.outcome("zero_optimization").reason
    assert reason.startswith("zero_optimization belongs to ds-zero, and the installed ds-zero 0.1.0 does not serve it")


def test_installed_wheels_are_read_through_the_plugin_manager() -> None:
    registry = Registry.installed()
    assert registry.claims["optimizer"].owner == "ds-core"
    assert "ds-core" in registry.wheels
