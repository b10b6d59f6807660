"""The tables of the documents say what the files in benchmarks/results say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tables_of_the_documents_are_made_from_the_results():
    assert subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py", "--check"]).returncode == 0
