"""What of the machine decides a run's bits: machine.json in its folder.

    {"device_type": "cpu", "compute_dtype": "float32", "begun_with_rows": 16, "micro_batch_rows": 8,
     "products": "library"}

Another micro-batch pads and sums in another shape, and another format or device rounds otherwise: each gives losses
with other last bits. So a run goes on with the machine it was begun with, and with the micro-batch it had come to. So
does what multiplies: the library, the CPU's matrix unit, or the library in bfloat16. The backend is free elsewhere, for
all decode alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from device_client.devices import DTYPE_BYTES
from device_client.model.backends.names import PRODUCTS, Products
from device_client.tuning.run_directory import RunDirectory
from shared.errors import Conflict, IntegrityError

MACHINE = "machine.json"


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """The machine of a run.

    Attributes:
        device_type: ``cpu`` or ``cuda``.
        compute_dtype: One of ``devices.DTYPE_BYTES``.
        begun_with_rows: Sequences side by side when the run began.
        micro_batch_rows: Sequences side by side now; fewer where memory ran out.
        products: What multiplies.
    """

    device_type: str
    compute_dtype: str
    begun_with_rows: int
    micro_batch_rows: int
    products: Products

    def check(
        self,
        run: RunDirectory,
        *,
        device_type: str | None,
        compute_dtype: str | None,
        micro_batch_rows: int | None,
        products: Products | None = None,
    ) -> None:
        """Refuse to go on with what is asked for where the run was begun otherwise; None asks for nothing.

        Raises:
            Conflict: Another device, format, micro-batch or way to multiply is asked for.
        """
        again = f"--device {self.device_type} --dtype {self.compute_dtype}"
        if device_type not in (None, self.device_type):
            raise _other_machine(run, f"--device {device_type}", again)
        if compute_dtype not in (None, self.compute_dtype):
            raise _other_machine(run, f"--dtype {compute_dtype}", again)
        if micro_batch_rows not in (None, self.begun_with_rows, self.micro_batch_rows):
            again = f"--micro-batch {self.begun_with_rows}"
            raise _other_machine(run, f"--micro-batch {micro_batch_rows}", again)
        if products not in (None, self.products):
            again = "--products bfloat16" if self.products == "bfloat16" else "no --products"
            raise _other_machine(run, f"--products {products}", again)

    def check_products(self, run: RunDirectory, products: Products) -> None:
        """Refuse to go on where something else multiplies than when the run was begun.

        Raises:
            Conflict: It does.
        """
        if products != self.products:
            raise Conflict(
                f"the run in {run.path} was begun with products by the {self.products}; here the {products} makes "
                "them, and the last bits of its losses would change",
                needed="a CPU with a matrix unit for bfloat16 (AMX), and the native backend: see zo-device doctor",
                next_step="go on with --backend native on the machine it was begun on, or begin another with --output",
            )


def _other_machine(run: RunDirectory, asked: str, again: str) -> Conflict:
    return Conflict(
        f"the run in {run.path} was begun with {again}; with {asked} the last bits of its losses would change",
        needed=again,
        next_step=f"go on with {again}, or begin another run with --output",
    )


def read_machine(run: RunDirectory) -> MachineRecord | None:
    """Return the machine on a run's record, or None where there is none yet.

    Raises:
        IntegrityError: The file is damaged.
    """
    found = run.read_json(MACHINE)
    if found is None:
        return None
    found = {"products": "library"} | found  # there was nothing else before it was on record
    if not _is_record(found):
        raise IntegrityError(
            f"{run.path / MACHINE} does not say what machine the run was begun on",
            next_step="restore it, or move that folder away and tune again",
        )
    return MachineRecord(**found)


def write_machine(run: RunDirectory, record: MachineRecord) -> None:
    """Put the machine on a run's record.

    Raises:
        DiskError: The disk is full or not writable.
    """
    run.write_json(MACHINE, asdict(record))


def _is_record(found: dict[str, Any]) -> bool:
    return (
        found.keys() == {field.name for field in fields(MachineRecord)}
        and found["device_type"] in ("cpu", "cuda")
        and found["compute_dtype"] in DTYPE_BYTES
        and type(found["micro_batch_rows"]) is int
        and type(found["begun_with_rows"]) is int
        and 1 <= found["micro_batch_rows"] <= found["begun_with_rows"]
        and found["products"] in PRODUCTS
    )
