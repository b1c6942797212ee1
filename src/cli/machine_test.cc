#include "cli/machine.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace quatrain {
namespace {

std::string WriteMachine(const std::string& json) {
  const std::string path = testing::TempDir() + "machine_test.json";
  std::ofstream(path) << json;
  return path;
}

std::string MessageOf(const std::string& text) {
  try {
    ParseMachine(text);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Machine, ACountAndAKnownDevice) {
  const Machine machine = ParseMachine("16xH200");
  EXPECT_EQ(machine.num_devices, 16);
  EXPECT_EQ(machine.devices_per_node, 8);
  EXPECT_EQ(machine.device_bytes, 141e9);
  EXPECT_EQ(machine.total_bytes(), 16 * 141e9);
}

TEST(Machine, AFileSaysTheRest) {
  const Machine machine =
      ParseMachine(WriteMachine(R"({"name": "lab", "devices": 4, "device_memory_gb": 24})"));
  EXPECT_EQ(machine.name, "lab");
  EXPECT_EQ(machine.devices_per_node, 4);
  EXPECT_EQ(machine.device_bytes, 24e9);
}

TEST(Machine, WithoutATextItIsThisHost) { EXPECT_GT(ParseMachine("").device_bytes, 0); }

TEST(Machine, WhatItIsNotIsSaid) {
  EXPECT_NE(MessageOf("8xH1000").find("H100"), std::string::npos);
  EXPECT_NE(MessageOf("0xH100").find("0xH100"), std::string::npos);
  EXPECT_NE(MessageOf("none.json").find("none.json"), std::string::npos);
  EXPECT_NE(MessageOf(WriteMachine(R"({"devices": 4})")).find("device_memory_gb"),
            std::string::npos);
  EXPECT_NE(MessageOf(WriteMachine(R"({"device": 4})")).find("\"device\""), std::string::npos);
}

}  // namespace
}  // namespace quatrain
