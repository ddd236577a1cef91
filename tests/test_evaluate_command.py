"""`evaluate --set`: another value of a field of the spec."""

import pytest
from lib.cli import UserError
from lib.commands.evaluate import changed_spec
from lib.sam.zoo import get_spec


def test_fields_take_other_values():
    spec = get_spec("fastsam3d_compact")
    changed = changed_spec(spec, ["zoom=false", 'replay="last"', "first_passes=1"])
    assert (changed.zoom, changed.replay, changed.first_passes) == (False, "last", 1)
    assert changed.encoder == spec.encoder and changed_spec(spec, []) == spec


@pytest.mark.parametrize("change", ["zom=false", "zoom=1", "replay=last", "zoom", "encoder={}", 'name="x"'])
def test_what_does_not_fit_is_refused(change):
    with pytest.raises(UserError, match="FIELD=VALUE"):
        changed_spec(get_spec("fastsam3d_compact"), [change])
