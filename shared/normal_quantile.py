"""32 random bits → one standard normal value, by operations that every machine rounds alike.

    z = ± Φ⁻¹(1 − a / 2^32)        sign: the highest bit; a: the other 31 bits, made odd, 1 ≤ a < 2^31

a in float32 is 2^e · (1.5 + t) with −0.5 ≤ t < 0.5, read off its bits; for each octave e one polynomial in t stands for
the quantile, within 5·10⁻⁶. Integer operations, conversions, products and sums of float32, each rounded on its own: no
logarithm, whose last bits differ between libraries. So vector units may do it, 16 values at once
(``device_client/model/backends/native/kernels/normal.h`` is the same in C++), and find the bits that NumPy finds here.

The largest |z| is 6.2 (a = 1). Costs about 5 ns per value in NumPy. Knows nothing about where bits come from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COEFFICIENTS = np.array(
    [
        (6.16643095, -0.105469011, 0.0342090279, -0.0150156301, 0.00838221703, -0.00448277593),
        (6.05582809, -0.107302934, 0.034774024, -0.0152577963, 0.00851501618, -0.00455302),
        (5.9432683, -0.109234437, 0.0353674591, -0.0155118555, 0.0086542191, -0.00462661358),
        (5.82864571, -0.111272402, 0.0359917693, -0.0157787986, 0.00880035013, -0.00470382767),
        (5.71184492, -0.113426894, 0.0366497003, -0.0160597432, 0.00895399693, -0.00478496542),
        (5.59273863, -0.11570935, 0.0373443365, -0.0163559355, 0.00911581796, -0.00487036677),
        (5.47118711, -0.118132815, 0.0380791686, -0.0166687891, 0.0092865536, -0.00496041263),
        (5.34703588, -0.120712288, 0.038858179, -0.0169999022, 0.00946704112, -0.00505553372),
        (5.22011423, -0.123465054, 0.0396859013, -0.0173510928, 0.00965823047, -0.00515621807),
        (5.09023237, -0.126411214, 0.0405675508, -0.0177244432, 0.00986120477, -0.00526301982),
        (4.95717621, -0.129574224, 0.0415091328, -0.0181223378, 0.0100772046, -0.00537657458),
        (4.82070732, -0.132981762, 0.0425176397, -0.0185475405, 0.0103076575, -0.00549761066),
        (4.68055439, -0.136666581, 0.0436012149, -0.019003259, 0.0105542187, -0.00562697044),
        (4.53640938, -0.140667945, 0.0447694547, -0.019493239, 0.0108188139, -0.00576563366),
        (4.38791943, -0.14503324, 0.0460337065, -0.0200218949, 0.0111036999, -0.00591474446),
        (4.23467731, -0.149820343, 0.0474075302, -0.0205944609, 0.011411543, -0.00607565045),
        (4.07620811, -0.155100748, 0.048907239, -0.0212171916, 0.0117455116, -0.00624994887),
        (3.91195464, -0.160963938, 0.0505526587, -0.0218976233, 0.0121094063, -0.00643954985),
        (3.74125433, -0.167523623, 0.052368097, -0.0226449203, 0.0125078224, -0.00664675422),
        (3.56330967, -0.174926788, 0.0543836877, -0.023470344, 0.0129463691, -0.00687436108),
        (3.37714791, -0.183367223, 0.0566371866, -0.02438787, 0.0134319626, -0.00712580746),
        (3.18156171, -0.193106428, 0.0591763929, -0.0254150331, 0.0139732249, -0.00740536069),
        (2.97502279, -0.204506949, 0.062062405, -0.0265740901, 0.0145810219, -0.00771837356),
        (2.7555511, -0.218088225, 0.0653737858, -0.0278935917, 0.0152691994, -0.00807164051),
        (2.52050447, -0.234624788, 0.0692111403, -0.0294105224, 0.0160556026, -0.00847388059),
        (2.26622915, -0.255331039, 0.0736992583, -0.0311731212, 0.0169634204, -0.00893639494),
        (1.98743045, -0.282237977, 0.0789746046, -0.0332445949, 0.0180229302, -0.00947393663),
        (1.67594242, -0.31905058, 0.0851049721, -0.0357097983, 0.0192733929, -0.0101057729),
        (1.31801379, -0.373413295, 0.091681391, -0.038710095, 0.0207625255, -0.0108569078),
        (0.887149692, -0.464411288, 0.095443666, -0.0428440459, 0.02248873, -0.0117662661),
        (0.318642616, -0.659292936, 0.069017224, -0.0573190376, 0.0215103179, -0.0138383452),
        (0, 0, 0, 0, 0, 0),
    ],
    dtype=np.float32,
)  # fmt: skip
"""float32 (32, 6): row e holds c₀ … c₅ of z = c₀ + c₁·t + … + c₅·t⁵ in octave e; a = 2^31 after rounding is p = ½."""

_AT_ONCE = 1 << 15
"""Values: what one pass over them reads and writes stays in the cache."""

_SIGN, _MAGNITUDE, _MANTISSA = np.uint32(1 << 31), np.uint32((1 << 31) - 1), np.uint32((1 << 23) - 1)
_ONE = np.uint32(127 << 23)
_BY_POWER = np.ascontiguousarray(COEFFICIENTS.T)


def normal_values(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Return one standard normal value for each word of uniform random bits.

    Args:
        bits: uint32 (n,).

    Returns:
        float32 (n,).
    """
    values = np.empty(len(bits), np.float32)
    for begin in range(0, len(bits), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        _evaluate(bits[part], values[part])
    return values


def _evaluate(bits: NDArray[np.uint32], values: NDArray[np.float32]) -> None:
    tail = ((bits & _MAGNITUDE) | np.uint32(1)).view(np.int32).astype(np.float32).view(np.uint32)
    octave = (tail >> np.uint32(23)).astype(np.intp) - 127
    place = ((tail & _MANTISSA) | _ONE).view(np.float32) - np.float32(1.5)
    np.take(_BY_POWER[-1], octave, out=values, mode="clip")  # "clip" needs no copy; no octave lies outside
    coefficient = np.empty_like(values)
    for power in _BY_POWER[-2::-1]:
        values *= place
        values += np.take(power, octave, out=coefficient, mode="clip")
    values.view(np.uint32)[:] ^= bits & _SIGN
