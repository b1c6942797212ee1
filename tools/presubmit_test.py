"""Each presubmit check catches what it is for, and lets the right thing pass."""

import pathlib
import subprocess
import tempfile
import unittest

import check_budgets
import check_docs
import check_format
import check_includes
import check_text
import cpp_functions
import fetch_dependencies
import source_tree


class TreeTest(unittest.TestCase):
    """A test with a small tree of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def write(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def assert_problem(self, problems, *parts):
        """Exactly one problem, which holds all the parts."""
        self.assertEqual(len(problems), 1, problems)
        for part in parts:
            self.assertIn(part, problems[0])


class SourceTree(TreeTest):
    def test_an_exported_tree_lists_all_but_generated_files(self):
        for name in ("src/a.cc", "build/b.cc", ".deps/torch/c.h", "tools/__pycache__/d.py"):
            self.write(name, "")
        self.assertEqual(source_tree.files(self.root), [self.root / "src/a.cc"])

    def test_a_clone_lists_tracked_and_new_files_but_not_ignored_or_deleted_ones(self):
        for name in ("tracked.cc", "gone.cc", "new.cc", "ignored.cc"):
            self.write(name, "")
        self.write(".gitignore", "ignored.cc\n")
        for arguments in (["init", "-q"], ["add", "tracked.cc", "gone.cc", ".gitignore"]):
            subprocess.run(["git", "-C", str(self.root), *arguments], check=True)
        (self.root / "gone.cc").unlink()
        names = [path.name for path in source_tree.cpp_files(self.root)]
        self.assertEqual(names, ["new.cc", "tracked.cc"])


class Includes(TreeTest):
    def check(self, name, line):
        self.write(name, line + "\n")
        return check_includes.check(self.root)

    def test_own_and_lower_folders_pass(self):
        lines = '#include "models/decoder.h"\n#include "base/error.h"\n#include <ATen/ATen.h>\n#include "hwy/highway.h"'
        self.assertEqual(self.check("src/models/decoder.cc", lines), [])

    def test_a_higher_folder_is_caught(self):
        self.assert_problem(self.check("src/base/a.h", '#include "kernels/int4.h"'), "src/base/a.h:1", "kernels/int4.h")

    def test_a_folder_of_the_same_rank_is_caught(self):
        self.assert_problem(self.check("src/engine/a.cc", '\n#include "train/trainer.h"'), "src/engine/a.cc:2")

    def test_torch_headers_are_caught_where_they_are_banned(self):
        for name in ("<ATen/ATen.h>", "<torch/torch.h>", "<c10/core/Scalar.h>", '"torch/csrc/x.h"'):
            self.assert_problem(self.check("src/text/a.cc", f"#include {name}"), "torch headers")

    def test_a_folder_without_rank_is_caught(self):
        self.assert_problem(self.check("src/utils/a.h", ""), "not in a folder with a rank")

    def test_an_include_without_folder_is_caught(self):
        self.assert_problem(self.check("src/base/a.cc", '#include "error.h"'), '"base/error.h"')

    def test_the_build_file_keeps_to_the_ranks_too(self):
        text = "quatrain_folder(rl base engine TORCH)\nquatrain_folder(engine base\n    train TORCH)\n"
        self.assert_problem(list(check_includes.check_cmake(text)), "engine must not depend on train")


class CppFunctions(unittest.TestCase):
    def find(self, text):
        return {f.name: (f.first_line, f.last_line, f.num_parameters) for f in cpp_functions.functions(text)}

    def test_definitions_members_and_declarations_are_measured(self):
        text = """namespace quatrain {
template <class T, int kSize>
int Sum(std::map<int, int> a, T b,
        int c = F(1, 2)) {
  if (a) { return '}' + "}{"[0]; }  // }
  return 0;
}
class A : public B<int()> {
 public:
  explicit A(int x) : x_{x}, y_(x) {}
  bool operator==(const A& other) const { return true; }
  void Run(std::function<void(int, int)> f, const char* s = ",");
  int x_ = 0, y_{1};
};
}  // namespace quatrain
"""
        self.assertEqual(
            self.find(text), {"Sum": (2, 7, 3), "A": (10, 10, 1), "operator==": (11, 11, 1), "Run": (12, 12, 2)}
        )

    def test_lambdas_and_initialisers_are_no_functions(self):
        text = "const auto kF = [](int a, int b) {\n  return a;\n};\nconstexpr int kA[] = {1, 2};\nvoid G() {}\n"
        self.assertEqual(self.find(text), {"G": (5, 5, 0)})

    def test_cuda_kernels_and_macros_are_measured(self):
        text = "template <int N>\n__global__ void __launch_bounds__(256) Kernel(int* a, int b) {\n}\nTEST(A, B) {\n}\n"
        self.assertEqual(self.find(text), {"Kernel": (1, 3, 2), "TEST": (4, 5, 2)})

    def test_literals_and_preprocessor_lines_hide_their_braces(self):
        text = '#define X(a) { \\\n  {\nvoid F() {\n  auto s = R"json({"a": "(\')")json";\n  int n = 1\'000\'000;\n}\nint G();\n'
        self.assertEqual(self.find(text), {"F": (3, 6, 0), "G": (7, 7, 0)})


class Budgets(TreeTest):
    def check(self, name, text):
        return list(check_budgets.check_text(name, text))

    def function(self, num_lines):
        return "void F() {\n" + "  G();\n" * (num_lines - 2) + "}\n"

    def test_long_files_are_caught(self):
        self.assertEqual(self.check("src/a.cc", "int a;\n" * 600), [])
        self.assert_problem(self.check("src/a.cc", "int a;\n" * 601), "601 lines")
        self.assert_problem(self.check("tools/a.sh", "true\n" * 401), "401 lines")
        self.assert_problem(self.check("tools/a.py", "a = 1\n" * 401), "401 lines")

    def test_long_functions_are_caught(self):
        self.assertEqual(self.check("src/io/a.cc", self.function(60)), [])
        self.assert_problem(self.check("src/io/a.cc", self.function(61)), "src/io/a.cc:1: F has 61 lines")
        self.assertEqual(self.check("src/kernels/a.cc", self.function(150)), [])
        self.assert_problem(self.check("src/kernels/a.cc", self.function(151)), "at most 150")
        self.assert_problem(self.check("a.py", "def f():\n" + "    g()\n" * 60), "f has 61 lines")

    def test_long_parameter_lists_are_caught(self):
        self.assertEqual(self.check("src/a.cc", "void F(int a, int b, int c, int d, int e, int f, int g);\n"), [])
        self.assert_problem(
            self.check("src/a.cc", "void F(int a, int b, int c, int d, int e, int f, int g, int h);\n"), "8 parameters"
        )
        self.assert_problem(self.check("a.py", "def f(a, b, c, d, e, f, g, *, h):\n    pass\n"), "8 parameters")

    def test_a_header_needs_a_comment_on_top(self):
        self.assertEqual(self.check("src/a.h", "// What for.\n#pragma once\n"), [])
        self.assert_problem(self.check("src/a.h", "#pragma once\n"), "opens with a comment")

    def test_a_waiver_needs_a_reason(self):
        waived = "// Does it.\n// budget: one table, which reads best in one piece\n" + self.function(99)
        self.assertEqual(self.check("src/a.cc", waived), [])
        self.assertEqual(len(self.check("src/a.cc", waived.replace("one table, which reads best in one piece", "x"))), 1)
        self.assertEqual(self.check("src/a.cc", "// budget: a generated table of code points\n" + "int a;\n" * 700), [])

    def test_a_waiver_holds_for_its_function_only(self):
        waiver = "// budget: one table, which reads best in one piece\n"
        self.assertEqual(len(self.check("src/a.cc", waiver + "int a;\n\n" + self.function(99))), 1)

    def test_the_size_of_the_tree_is_capped(self):
        self.write("data.bin", "")
        with (self.root / "data.bin").open("wb") as stream:
            stream.truncate(check_budgets.MAX_TREE_BYTES + (1 << 20))
        self.assert_problem(check_budgets.check(self.root), "46.0 MiB")


class Docs(TreeTest):
    def check(self, text):
        self.write("tools/setup.sh", "")
        self.write("src/kernels/int4.h", "// See docs/page.md.\n")
        self.write("docs/page.md", text)
        return check_docs.check(self.root)

    def test_paths_that_exist_pass(self):
        text = "`tools/setup.sh --help`, `kernels/int4.h`, `src/*/int4.h`, [here](../tools/setup.sh#top), [self](#a)\n"
        self.assertEqual(self.check(text), [])

    def test_what_is_no_path_of_ours_passes(self):
        text = "`model/config.json`, `build/release/quatrain`, `tokens/s`, [site](https://a.b/c.md), `<dir>/src/a.h`\n"
        self.assertEqual(self.check(text), [])

    def test_missing_paths_in_backticks_are_caught(self):
        self.assert_problem(self.check("Run `tools/gone.sh`.\n"), "docs/page.md", "tools/gone.sh")
        self.assert_problem(self.check("See `kernels/gone.h`.\n"), "kernels/gone.h")
        self.assert_problem(self.check("See `GONE.md`.\n"), "GONE.md")
        self.assert_problem(self.check("```\nmake\ntools/gone.sh a\n```\n"), "tools/gone.sh")

    def test_broken_links_are_caught(self):
        self.assert_problem(self.check("[a](gone.md#b)\n"), "link to gone.md#b")
        self.assert_problem(self.check("![a](gone.png)\n"), "link to gone.png")

    def test_pages_named_in_source_comments_are_checked(self):
        self.write("src/kernels/moe.h", "//\n// Source: docs/gone.md section 2.\n")
        self.assert_problem(self.check(""), "src/kernels/moe.h:2", "docs/gone.md")


class Text(unittest.TestCase):
    def check(self, name, content):
        return list(check_text.check_bytes(name, content))

    def test_other_than_ascii_is_caught_outside_of_data(self):
        content = "int a;\n// a \u2192 b\n".encode()
        self.assertIn("src/a.cc:2:6", self.check("src/a.cc", content)[0])
        for name in ("tests/goldens/text/cases.jsonl", "examples/models/tokenizer.json"):
            self.assertEqual(self.check(name, content), [])
        self.assertEqual(self.check("docs/report.png", b"\x89PNG\0"), [])

    def test_unfinished_marks_are_caught_in_sources(self):
        mark = b"TO" + b"DO"
        self.assertIn("tools/a.sh:1", self.check("tools/a.sh", b"# " + mark + b": later\n")[0])
        self.assertEqual(self.check("src/a.cc", b"int " + mark + b"S;\n"), [])


class Format(TreeTest):
    def test_a_file_with_another_layout_is_caught_and_mended(self):
        self.write(".clang-format", (source_tree.ROOT / ".clang-format").read_text())
        self.write("src/good.cc", "int a;\n")
        self.write("src/bad.cc", "int a;\nint  *b;\n")
        self.assert_problem(check_format.check(self.root), "src/bad.cc:2")
        check_format.fix(self.root)
        self.assertEqual(check_format.check(self.root), [])
        self.assertEqual((self.root / "src/bad.cc").read_text(), "int a;\nint* b;\n")


class FetchDependencies(TreeTest):
    def test_every_requirement_is_pinned_to_a_version_and_a_hash(self):
        for dependency in fetch_dependencies.DEPENDENCIES:
            for archive in dependency.archives:
                self.assertRegex(archive.requirement, r"^[a-z0-9-]+==[0-9.]+$")
                self.assertRegex(archive.sha256, r"^[0-9a-f]{64}$")

    def test_an_archive_without_a_wanted_file_is_an_error(self):
        subprocess.run(["tar", "-cf", "a.tar", "--files-from=/dev/null"], cwd=self.root, check=True)
        archive = fetch_dependencies.Archive("a==1", "0" * 64, 1, ((r"lib/a\.so", "a.so"),))
        with self.assertRaisesRegex(fetch_dependencies.FetchError, r"a==1.*lib/a"):
            fetch_dependencies.unpack(archive, self.root / "a.tar", self.root)


if __name__ == "__main__":
    unittest.main()
