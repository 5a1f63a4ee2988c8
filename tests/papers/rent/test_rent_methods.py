import pytest

from papers.rent.methods import ESTIMATORS, parse_method
from papers.rent.utilization import Utilization
from shared.errors import InputError


def test_names_parse():
    assert (parse_method("ce").utilization, parse_method("ce").estimator) == (Utilization("ce"), None)
    method = parse_method("dws:0.1/volminnet")
    assert (method.name, method.utilization, method.estimator) == (
        "dws:0.1/volminnet",
        Utilization("dws", 0.1),
        "volminnet",
    )
    assert {parse_method(f"rent/{estimator}").estimator for estimator in ESTIMATORS} == set(ESTIMATORS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rent", "method 'rent': needs an estimator, such as rent/forward; there are: true, forward"),
        ("rent/guess", "method 'rent/guess': needs an estimator"),
        ("b0/forward", "method 'b0/forward': b0 uses no transition matrix, and is written alone"),
        ("ce/", "method 'ce/': ce uses no transition matrix"),
        ("dws/forward", "method 'dws/forward': utilization: need one of"),
        ("mae/true", "method 'mae/true': utilization: need one of"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(InputError) as error:
        parse_method(name)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_warm_ups():
    epochs = {name: parse_method(name).warmup_epochs(common=10, dual=20) for name in
              ("ce", "b0", "rw/true", "fl/forward", "rent/dual_t", "rent/volminnet", "fl/tv", "rw/cycle")}  # fmt: skip
    assert list(epochs.values()) == [10, 10, 10, 10, 20, 0, 0, 10]
