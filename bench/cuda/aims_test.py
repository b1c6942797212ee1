"""The table of aims from rows: picks, judges and leaves out. Run by ctest; needs no device."""

import json
import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import aims  # noqa: E402
import bench  # noqa: E402

ROWS = HERE.parent / "results" / "h100"


def line_of(rows, what):
    return next(line for line in aims.table(rows) if line.startswith(what))


class AimsTest(unittest.TestCase):
    def test_the_worst_row_counts(self):
        rows = [{"kernel": "linear_decode w4a16", "n": 28672, "k": 8192, "g": 128, "m": m, "of_streaming_read": share}
                for m, share in ((1, 0.9), (8, 0.8), (16, 0.76))]
        self.assertIn("0.8 missed", line_of(rows, "W4A16 decode 28672 x 8192, M 1-8, of the read"))
        self.assertIn("0.76 met", line_of(rows, "W4A16 decode 28672 x 8192, M 16, of the read"))

    def test_at_most_is_the_other_way_round(self):
        for value, verdict in ((1.02, "met"), (1.04, "missed")):
            rows = [{"kernel": "adamw codes g32", "to_plain": value}]
            self.assertTrue(line_of(rows, "AdamW + requantise g32, flips counted, time of AdamW alone").endswith(verdict))

    def test_an_aim_without_rows_has_no_verdict(self):
        self.assertTrue(line_of([], "fake-quant, of a copy").endswith("-"))

    def test_of_equal_measurements_the_last_counts(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            for share in (0.5, 0.9):
                file.write(json.dumps({"kernel": "pack", "shape": [1, 1], "group": 32, "share_of_read": share}) + "\n")
            file.flush()
            self.assertEqual([row["share_of_read"] for row in aims.read_rows([file.name])], [0.9])

    def test_committed_rows_have_their_tags_and_serve_most_aims(self):
        paths = sorted(ROWS.glob("*.jsonl"))
        for path in paths:
            for line in path.read_text(encoding="utf-8").splitlines():
                self.assertEqual([tag for tag in aims.TAGS if tag not in json.loads(line)], [], path)
        rows = aims.read_rows(paths)
        without = [aim.what for aim in aims.aims() if aim.measured(rows) is None]
        self.assertEqual(without, [])

    def test_every_measurement_is_a_part_of_bench(self):
        modules = {path.stem for path in HERE.glob("bench_*.py")}
        programs = {path.stem for path in HERE.glob("*.cu")} - {"kernels_for_python"}
        self.assertEqual(set(bench.MODULES.values()), modules)
        self.assertEqual(set(bench.PROGRAMS.values()), programs)
        for name in modules:
            self.assertIn("\nSECTIONS = {", (HERE / f"{name}.py").read_text(encoding="utf-8"))


if __name__ == "__main__":
    unittest.main()
