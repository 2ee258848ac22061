"""Golden cases of UniRig's skeleton half."""

import torch
from parity_case import Case, Check, close, exact

from networks.unirig.michelangelo import (
    MichelangeloEncoder,
    farthest_point_sampling,
    fourier_features,
    presample_index,
)


def run_michelangelo(case: Case) -> list[Check]:
    model = MichelangeloEncoder.from_config(case.config).eval()
    model.load_state_dict(case.weights)
    points, feats = case.inputs["pc"], case.inputs["feats"]
    stages = {}
    encoder = model.encoder
    encoder.cross_attn.register_forward_hook(lambda _m, _i, out: stages.__setitem__("after_cross", out))
    encoder.self_attn.resblocks[0].register_forward_hook(lambda _m, _i, out: stages.__setitem__("after_resblock0", out))
    encoder.register_forward_pre_hook(lambda _m, args: stages.update(query_proj=args[0], data_proj=args[1]))
    stages["latents"] = model(points, feats)
    stages["fourier"] = fourier_features(points, encoder.num_freqs, encoder.include_pi)

    presample = presample_index(points.shape[1], model.token_num)
    chosen = [farthest_point_sampling(cloud[presample].numpy(), model.token_num) for cloud in points]
    offset = [torch.from_numpy(index) + i * len(presample) for i, index in enumerate(chosen)]
    return [
        exact(case, "presample_index", presample),
        exact(case, "fps_index", torch.cat(offset)),
        close(case, "fourier", stages.pop("fourier"), atol=1e-6, rtol=0),
        *(close(case, name, stages[name], atol=1e-4, rtol=0) for name in sorted(stages)),
    ]


CASES = {
    "michelangelo": run_michelangelo,
}
