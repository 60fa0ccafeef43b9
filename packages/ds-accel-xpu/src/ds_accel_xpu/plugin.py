"""What ds-accel-xpu brings to ds-core: Intel GPUs as the device ``xpu``, and kernels for its ops."""

from __future__ import annotations

from collections.abc import Iterable

from ds_core.hooks import AcceleratorEntry, Availability, OpImpl, Proof, hookimpl

DS_HOOK_API = (1, 2)

OPS = (
    "adam_",
    "adagrad_",
    "lion_",
    "sgd_",
    "sum_of_squares",
    "rms_norm_forward",
    "rms_norm_backward",
    "layer_norm_forward",
    "layer_norm_backward",
    "add_rms_norm_forward",
    "add_rms_norm_backward",
    "add_layer_norm_forward",
    "add_layer_norm_backward",
    "rotary",
    "rotary_",
    "gated_activation",
    "gated_activation_backward",
    "gated_activation_packed",
    "gated_activation_packed_backward",
    "softmax_forward",
    "softmax_backward",
    "cross_entropy_forward",
    "cross_entropy_backward",
    "cross_entropy_",
    "quantize",
    "dequantize",
    "quantized_reduce",
    "quantized_reduce_quantize",
    "swizzle_quantize",
    "gather_rows",
    "replace_rows",
    "scatter_rows",
    "scatter_rows_backward",
    "combine_rows",
    "combine_rows_backward",
    "linear_weight_only",
    "linear_w8a8",
)


def _is_available() -> Availability:
    """Files and one small library are looked at; torch is imported only where they say that it will find a device."""
    try:
        from ds_accel_xpu.signs import read_signs, why_unusable

        reason = why_unusable(read_signs())
        if reason:
            return Availability(usable=False, reason=reason)
        from ds_accel_xpu.accelerator import devices_seen

        return devices_seen()
    except Exception as error:  # noqa: BLE001 - the answer to "is it usable" is no, and why
        return Availability(usable=False, reason=f"asking for devices failed: {type(error).__name__}: {error}")


@hookimpl
def ds_accelerators() -> Iterable[AcceleratorEntry]:
    """Intel GPUs through torch.xpu."""
    return [
        AcceleratorEntry(
            "xpu",
            is_available=_is_available,
            factory="ds_accel_xpu.accelerator:XpuAccelerator",
            # Not /dev/dri/renderD*, which is every vendor's: devices that Intel's kernel drivers serve.
            device_nodes=("/sys/bus/pci/drivers/xe/[0-9]*:*", "/sys/bus/pci/drivers/i915/[0-9]*:*"),
            facts="ds_accel_xpu.facts:facts",
        )
    ]


@hookimpl
def ds_ops() -> Iterable[OpImpl]:
    """Kernels, where this build of the wheel has a host half for the libsycl that torch uses."""
    from ds_accel_xpu.libraries import why_no_kernels

    if why_no_kernels():
        return []
    return [
        OpImpl(
            op,
            "xpu",
            load=f"ds_accel_xpu.serving:OPS.{op}",
            supports="ds_accel_xpu.serving:why_not_summed" if op == "sum_of_squares" else None,
            proof=Proof.EXECUTED,
        )
        for op in OPS
    ]
