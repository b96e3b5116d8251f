"""A sample of the zoo, small enough to be cut in half and proved on every run: real code of timm and transformers."""

from __future__ import annotations

import warnings

import pytest
import torch

import surgeon
from surgeon.modules import tensors_in
from surgeon.verify.count import Count
from tests.schema import assert_follows_the_schema
from tests.zoo.catalogue import entries
from tests.zoo.models import call
from tests.zoo.weights import randomize

UNCOUNTED = (Count(float("nan")), Count(float("nan")))

# Each brings something that the others don't.
SAMPLE = {
    "timm": """
        test_byobnet test_coatnet test_convnext2 test_convnext3 test_efficientnet test_efficientnet_evos
        test_efficientnet_gn test_efficientnet_ln test_mambaout test_maxvit test_nfnet test_resnet test_vit test_vit3
        test_vit4 test_vit_relpos edgenext_xx_small mobilevitv2_050 ghostnet_050 starnet_s050 lcnet_035 repghostnet_050
        """,
    "torchvision": "mobilenet_v3_small shufflenet_v2_x0_5 lraspp_mobilenet_v3_large ssdlite320_mobilenet_v3_large",
    "transformers": """
        bert deberta_v2 gpt2 opt llama phi3 mamba t5 whisper wav2vec2 vit swin segformer detr blip sam
        """,
}


@pytest.mark.parametrize("model_name", [f"{kind}/{name}" for kind, names in SAMPLE.items() for name in names.split()])
@pytest.mark.filterwarnings("ignore")  # of the libraries, not of ours
def test_half_is_cut_and_proved(model_name: str) -> None:
    collection, name = model_name.split("/")
    if collection == "transformers":
        pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = entries(collection)[name]()
    model = randomize(model.eval())
    graph = surgeon.trace(model, inputs)
    plan = surgeon.plan(graph, surgeon.score(graph, "random"), ratio=0.5, scope="local")
    assert_follows_the_schema(plan)
    small = surgeon.operate(model, plan)
    proof = surgeon.verify(model, small, plan, inputs, counts=UNCOUNTED)
    assert proof.difference <= proof.tolerance
    assert plan.totals["flops"][1] < 0.8 * plan.totals["flops"][0]
    with torch.no_grad():
        assert all(t.isfinite().all() for t in tensors_in(call(small, inputs)) if t.is_floating_point())
