"""Log of collectives."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.comm.profile": "CommsLogger",
    },
    refusals={
        "calc_bw_log": "deepspeed.comm.log_summary(return_dict=True) and ds_core.comm.report() have the figures",
        "convert_size": "deepspeed.comm.log_summary(return_dict=True) and ds_core.comm.report() have the figures",
        "get_caller_func": "deepspeed.comm.log_summary(return_dict=True) and ds_core.comm.report() have the figures",
    },
)
