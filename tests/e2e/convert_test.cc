// quatrain convert and dequantize as a user runs them: killed at any moment, stopped, on a full
// disk.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "base/file.h"
#include "base/json.h"
#include "base/random.h"
#include "io/tensor_set.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

const std::string kSource = QT_SOURCE_DIR;
const std::string kModel = kSource + "/examples/models/tiny-qwen3-moe";

struct Outcome {
  int status = -1;  // of exit; -1 if a signal ended it
  std::string text;
};

class ConvertProgram : public testing::Test {
 protected:
  ConvertProgram()
      : folder_(fs::temp_directory_path() / fmt::format("quatrain_convert_{}", getpid())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~ConvertProgram() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  std::vector<std::string> ConvertArguments(const std::string& output) const {
    return {"convert",
            "--input-dir",
            kModel,
            "--output-dir",
            Path(output),
            "--data-dir",
            kSource + "/examples/data/calibration",
            "--num-calibration-samples",
            "24",
            "--max-sequence-length",
            "128",
            "--scope",
            "all-linear",
            "--max-shard-size",
            "500KB"};
  }

  // Starts the program; its output goes to the file "out".
  pid_t Start(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), QT_CLI);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const std::string out = Path("out");
    const pid_t child = fork();
    if (child != 0) return child;
    const int file = open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }

  Outcome Wait(pid_t child) const {
    int status = 0;
    waitpid(child, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadFile(Path("out"))};
  }
  Outcome Run(const std::vector<std::string>& arguments) const { return Wait(Start(arguments)); }

  size_t NumStages(const std::string& output) const {
    size_t count = 0;
    std::error_code gone;
    for (const auto& entry : fs::directory_iterator(WorkFolder::PathFor(Path(output)), gone)) {
      count += entry.path().filename().string().starts_with("stage-");
    }
    return count;
  }

  // Signals the child when `num_stages` stages are done, and some turns of this loop after.
  void SignalAfter(pid_t child, const std::string& output, size_t num_stages, uint64_t turns,
                   int signal_number) const {
    const auto has_ended = [&] {
      siginfo_t info = {};
      return waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
             info.si_pid == child;
    };
    while (NumStages(output) < num_stages && !has_ended()) sched_yield();
    for (uint64_t i = 0; i < turns && !has_ended(); ++i) sched_yield();
    kill(child, signal_number);
  }

  std::map<std::string, std::string> FilesOf(const std::string& output) const {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(Path(output))) {
      const std::string name = entry.path().filename().string();
      if (!name.starts_with("conversion_report")) files[name] = ReadFile(entry.path());
    }
    return files;
  }

  fs::path folder_;
};

TEST_F(ConvertProgram, KilledAtFiveRandomMomentsItEndsWithTheSameBytesOnOneThreadAndTwo) {
  ASSERT_EQ(Run(ConvertArguments("whole")).status, 0);
  for (const char* threads : {"1", "2"}) {
    const std::string output = std::string("killed") + threads;
    std::vector<std::string> arguments = ConvertArguments(output);
    arguments.insert(arguments.end(), {"--threads", threads});
    for (uint64_t i = 0; i < 5; ++i) {
      const pid_t child = Start(arguments);
      SignalAfter(child, output, NumStages(output) + (i % 2), HashBits(1, i, 0) % 20000, SIGKILL);
      Wait(child);
    }
    if (!fs::exists(Path(output))) {
      const Outcome outcome = Run(arguments);
      ASSERT_EQ(outcome.status, 0) << outcome.text;
    }
    EXPECT_EQ(FilesOf("whole"), FilesOf(output));
    EXPECT_FALSE(fs::exists(WorkFolder::PathFor(Path(output))));
  }
}

TEST_F(ConvertProgram, InterruptKeepsWhatIsDoneAndAChangedFlagIsRefused) {
  const pid_t child = Start(ConvertArguments("int4"));
  SignalAfter(child, "int4", 2, 0, SIGINT);
  const Outcome stopped = Wait(child);
  ASSERT_EQ(stopped.status, 130) << stopped.text;
  EXPECT_NE(stopped.text.find("run the same command again"), std::string::npos) << stopped.text;
  std::vector<std::string> changed = ConvertArguments("int4");
  changed.insert(changed.end(), {"--quant-group-size", "64"});
  const Outcome refused = Run(changed);
  EXPECT_EQ(refused.status, 2);
  EXPECT_NE(refused.text.find("--quant-group-size"), std::string::npos) << refused.text;
  changed.push_back("--restart");
  EXPECT_EQ(Run(changed).status, 0);
  EXPECT_TRUE(fs::exists(Path("int4/conversion_report.json")));
}

TEST_F(ConvertProgram, FallbacksOverTheThresholdAreExitStatusThree) {
  // Eight tokens and no dampening: no Hessian can be factored, and the reference's way is to round.
  std::vector<std::string> arguments = {"convert",
                                        "--input-dir",
                                        kModel,
                                        "--data-dir",
                                        kSource + "/examples/data/calibration",
                                        "--method",
                                        "reference",
                                        "--scope",
                                        "all-linear",
                                        "--num-calibration-samples",
                                        "1",
                                        "--max-sequence-length",
                                        "8",
                                        "--dampening-frac",
                                        "0",
                                        "--output-dir",
                                        Path("int4")};
  const Outcome outcome = Run(arguments);
  EXPECT_EQ(outcome.status, 3) << outcome.text;
  EXPECT_NE(outcome.text.find("--max-fallback-fraction"), std::string::npos) << outcome.text;
  EXPECT_TRUE(fs::exists(Path("int4/model.safetensors")));
  const Json report = ParseJson(ReadFile(Path("int4/conversion_report.json")), "report");
  EXPECT_GT(report["fallbacks"].size(), 10u);
  EXPECT_FALSE(report["fallbacks"][0]["reason"].get<std::string>().empty());
  arguments.back() = Path("accepted");
  arguments.insert(arguments.end(), {"--max-fallback-fraction", "1"});
  EXPECT_EQ(Run(arguments).status, 0);
}

TEST_F(ConvertProgram, FullDiskSaysWhatIsMissingAndKeepsWhatIsDone) {
  const std::string disk = Path("disk");
  fs::create_directories(disk);
  // Room for the check at the start, taken away when the first stages are done.
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=12m") != 0) {
    GTEST_SKIP() << "a file system of its own needs the right to mount";
  }
  std::vector<std::string> arguments = ConvertArguments("disk/int4");
  pid_t child = Start(arguments);
  SignalAfter(child, "disk/int4", 2, 0, SIGKILL);
  Wait(child);
  const size_t num_done = NumStages("disk/int4");
  {
    FileWriter filler(disk + "/filler");
    const std::vector<std::byte> block(4096);
    try {
      for (uint64_t offset = 0; FreeDiskBytes(disk) > 100'000; offset += block.size()) {
        filler.WriteAt(offset, block);
      }
    } catch (const std::exception&) {
    }
  }
  const Outcome full = Run(arguments);
  EXPECT_EQ(full.status, 2) << full.text;
  EXPECT_NE(full.text.find("the disk lacks"), std::string::npos) << full.text;
  EXPECT_GE(NumStages("disk/int4"), num_done);
  fs::remove(disk + "/filler");
  const Outcome resumed = Run(arguments);
  EXPECT_EQ(resumed.status, 0) << resumed.text;
  EXPECT_NE(resumed.text.find("going on in"), std::string::npos) << resumed.text;
  umount2(disk.c_str(), MNT_DETACH);
}

TEST_F(ConvertProgram, DequantizedDirectoryConvertsBackToTheSameCodes) {
  const std::vector<std::string> rtn = {"convert", "--method", "rtn", "--scope", "all-linear"};
  for (const char* type : {"W4A16", "W8A16"}) {
    std::vector<std::string> first = rtn, again = rtn;
    const std::string int4 = Path(std::string("int-") + type), bf16 = int4 + "-bf16";
    first.insert(first.end(), {"--quant-type", type, "--input-dir", kModel, "--output-dir", int4});
    ASSERT_EQ(Run(first).status, 0);
    const Outcome outcome = Run({"dequantize", "--input-dir", int4, "--output-dir", bf16});
    ASSERT_EQ(outcome.status, 0) << outcome.text;
    again.insert(again.end(),
                 {"--quant-type", type, "--input-dir", bf16, "--output-dir", int4 + "-again"});
    ASSERT_EQ(Run(again).status, 0);
    EXPECT_EQ(ReadFile(int4 + "/model.safetensors"), ReadFile(int4 + "-again/model.safetensors"));
  }
  EXPECT_EQ(Run({"dequantize", "--input-dir", kModel, "--output-dir", Path("x")}).status, 2);
}

TEST_F(ConvertProgram, DequantizeGivesTheValuesOfTheReferencesDecompressor) {
  const fs::path goldens = fs::path(kSource) / "tests/goldens/compressed-tensors";
  for (const char* name : {"tiny-qwen3-moe-rtn-w4-g32-experts", "tiny-qwen3-moe-gptq-w4-g32-all",
                           "tiny-llama-gptq-w4-g128-all"}) {
    const std::string output = Path(name);
    const Outcome outcome =
        Run({"dequantize", "--input-dir", (goldens / name).string(), "--output-dir", output});
    ASSERT_EQ(outcome.status, 0) << outcome.text;
    const TensorSet expected(goldens / name / "dequantised.safetensors"), found(output);
    ASSERT_FALSE(expected.tensors().empty());
    for (const TensorView& tensor : expected.tensors()) {
      const TensorView& ours = found.Get(tensor.name);
      EXPECT_EQ(ours.dtype, DType::kBF16);
      EXPECT_TRUE(std::equal(tensor.bytes.begin(), tensor.bytes.end(), ours.bytes.begin(),
                             ours.bytes.end()))
          << name << " " << tensor.name;
    }
  }
}

}  // namespace
}  // namespace quatrain
