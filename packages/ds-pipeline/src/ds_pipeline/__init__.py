"""Pipeline parallelism for ds-core: stages, schedules as data, and a runtime that executes any of them."""
