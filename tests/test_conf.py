"""--conf strings -> AppConf."""

import dataclasses

import pytest
from lib.conf import DEFAULT_LABELS, MODELS, AppConf, ConfError, parse_labels


def test_no_settings_is_a_complete_configuration():
    conf = AppConf.parse({})
    assert conf == AppConf.parse(None)
    assert conf.models == MODELS
    assert list(conf.labels) == list(DEFAULT_LABELS)
    assert list(conf.labels.values()) == list(range(1, len(DEFAULT_LABELS) + 1))
    assert (conf.device, conf.threads, conf.preload) == ("auto", 0, True)
    assert conf.cache_bytes >= 2**30


def test_every_setting_is_read():
    conf = AppConf.parse(
        {
            "models": "sam_med3d, fastsam3d",
            "labels": "liver:3, tumour:1",
            "device": "CUDA:1",
            "weights": "fastsam3d=/a/b.safetensors,sam_med3d=turbo",
            "cache_gb": "0.5",
            "threads": "3",
            "preload": "false",
        }
    )
    assert conf.models == ("sam_med3d", "fastsam3d")
    assert dict(conf.labels) == {"liver": 3, "tumour": 1}
    assert conf.device == "cuda:1"
    assert dict(conf.weights) == {"fastsam3d": "/a/b.safetensors", "sam_med3d": "turbo"}
    assert (conf.cache_bytes, conf.threads, conf.preload) == (2**29, 3, False)


def test_weights_alone_are_for_the_default_model():
    assert dict(AppConf.parse({"weights": "my.safetensors"}).weights) == {"fastsam3d": "my.safetensors"}


def test_labels_without_numbers_count_from_one():
    assert dict(parse_labels("liver, left kidney ,")) == {"liver": 1, "left kidney": 2}


def test_a_configuration_is_frozen():
    conf = AppConf.parse({})
    with pytest.raises(dataclasses.FrozenInstanceError):
        conf.threads = 4
    with pytest.raises(TypeError):
        conf.labels["x"] = 1


def test_keys_of_monai_label_are_tolerated():
    assert AppConf.parse({"server_mode": "true", "skip_scoring": "true", "zoo_repo": "x"}) == AppConf.parse({})


def test_an_unknown_key_names_the_known_ones():
    with pytest.raises(
        ConfError,
        match="cache_gb, device, labels, models, preload, strategy, threads, upload_gb, weights; got 'lables'",
    ):
        AppConf.parse({"lables": "liver"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("models", "unet"),
        ("models", ""),
        ("labels", ""),
        ("labels", "liver:1,spleen"),
        ("labels", "liver:0"),
        ("labels", "liver:one"),
        ("labels", "liver:1,spleen:1"),
        ("labels", "liver,liver"),
        ("labels", "background"),
        ("labels", "x" * 65),
        ("device", "gpu"),
        ("device", "cpu:0"),
        ("device", "cuda:x"),
        ("weights", "unet=a"),
        ("weights", "fastsam3d="),
        ("weights", "a,b"),
        ("cache_gb", "0"),
        ("cache_gb", "nan"),
        ("cache_gb", "inf"),
        ("cache_gb", "much"),
        ("threads", "-1"),
        ("threads", "2.5"),
        ("preload", "maybe"),
    ],
)
def test_an_unusable_value_is_refused_with_its_name(key, value):
    with pytest.raises(ConfError) as caught:
        AppConf.parse({key: value})
    assert value in str(caught.value) or value.split(",")[-1] in str(caught.value)
