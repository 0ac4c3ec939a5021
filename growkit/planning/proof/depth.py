"""What layers that are taken, repeated or silenced keep of the function.

A silent layer adds nothing to the stream, so the function stays; but where norms write the stream
(post-norm), it still normalises what is normal already, which differs from 1 by eps.
"""

from __future__ import annotations

from growkit.algebra.layer_map import LayerMap
from growkit.families.family import Family
from growkit.planning.proof.claim import EPS, Claim, approximate


def prove_depth(family: Family, axis: str, old: int, layers: LayerMap, eps: float) -> Claim:
    """The claim of taking the `old` layers of an axis by `layers`; `eps` is that of norms."""
    where = f"{axis} {old} → {len(layers)}: "
    loud = [n for n in layers if not n.silent]
    kept = [n.source for n in loud]
    reasons = []
    if any(n.random for n in loud):
        reasons.append("new layers are drawn at random")
    elif any(len(n.mix) > 1 or n.mix[0][1] != 1.0 for n in loud):
        reasons.append("layers are averaged")
    elif kept != list(range(old)):
        repeated = len(kept) > len(set(kept))
        reasons.append("layers run twice" if repeated else "layers are left out or change places")
    if any(n.scale != 1.0 for n in loud):
        reasons.append("what layers add to the stream is scaled")
    if reasons:
        return approximate([where + r for r in reasons])
    added = len(layers) - len(loud)
    post = family.residual == "post"
    if axis in family.joins and any(n.silent for n in layers[: 1 + post]):
        what = f"{family.joins[axis]} joins the stream after layer 0"
        return approximate([f"{where}{what}, which now is not what it was"])
    if not added or not post:
        return Claim()
    passes = added * len(stream_norms(family, axis))
    reason = (
        f"{where}norms write the stream, so an empty layer still normalises what is normal "
        f"already: {passes} passes that differ from 1 by eps"
    )
    return Claim(EPS, (reason,), eps, passes)


def stream_norms(family: Family, axis: str) -> list[str]:
    """The modules inside a layer that are norms whose output is the stream, in running order."""
    return [
        p.module
        for p in family.patterns.values()
        if p.to_stream and axis in p.slots and p.dims[0][1] == "*"
    ]
