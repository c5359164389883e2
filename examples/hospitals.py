"""The patients of the heart disease data, for the two examples on hospitals."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

HOSPITALS = ["cleveland", "hungarian", "va", "switzerland"]


def patients(folder: str | Path) -> pa.Table:
    """All patients, hospital by hospital; `diagnosis` is "disease" where the file's `num` is above 0, else "none"."""
    table = pa.parquet.read_table(Path(folder) / "patients.parquet")
    disease = ["disease" if num > 0 else "none" for num in table["num"].to_pylist()]
    return table.append_column("diagnosis", [disease]).drop_columns(["num"])


def of(table: pa.Table, hospital: str) -> pa.Table:
    """One hospital's patients."""
    return table.filter(pa.compute.equal(table["hospital"], hospital))
