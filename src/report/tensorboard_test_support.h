// A reader of TensorBoard event files that shares no code with the writer: records, then protocol
// buffer fields by number. For tests.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "report/tensorboard.h"

namespace quatrain {

template <class Integer>
Integer TakeInteger(std::string_view& bytes) {
  Integer value;
  std::memcpy(&value, bytes.data(), sizeof(value));
  bytes.remove_prefix(sizeof(value));
  return value;
}

// The events of a file, whose checksums must be right.
inline std::vector<std::string> EventRecords(std::string_view file) {
  const auto unmasked = [](uint32_t masked) {
    const uint32_t rotated = masked - 0xA282EAD8u;
    return (rotated >> 17) | (rotated << 15);
  };
  std::vector<std::string> events;
  while (!file.empty()) {
    const std::string length_bytes(file.substr(0, 8));
    const auto length = TakeInteger<uint64_t>(file);
    EXPECT_EQ(unmasked(TakeInteger<uint32_t>(file)), Crc32c(length_bytes));
    events.emplace_back(file.substr(0, length));
    file.remove_prefix(length);
    EXPECT_EQ(unmasked(TakeInteger<uint32_t>(file)), Crc32c(events.back()));
  }
  return events;
}

inline uint64_t TakeVarint(std::string_view& bytes) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = TakeInteger<uint8_t>(bytes);
    value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return value;
  }
}

// Field number -> contents, in order; fixed-width numbers as their bytes, others as decimal text.
inline std::multimap<uint64_t, std::string> ProtoFields(std::string_view bytes) {
  std::multimap<uint64_t, std::string> fields;
  while (!bytes.empty()) {
    const uint64_t key = TakeVarint(bytes);
    size_t length = (key & 7) == 1 ? 8 : 4;
    if ((key & 7) == 0) {
      fields.emplace(key >> 3, std::to_string(TakeVarint(bytes)));
      continue;
    }
    if ((key & 7) == 2) length = TakeVarint(bytes);
    fields.emplace(key >> 3, std::string(bytes.substr(0, length)));
    bytes.remove_prefix(length);
  }
  return fields;
}

// Of an event with a summary.
inline std::map<std::string, float> EventScalars(std::string_view event) {
  std::map<std::string, float> scalars;
  for (const auto& [number, value] : ProtoFields(ProtoFields(event).find(5)->second)) {
    const auto parts = ProtoFields(value);
    std::string_view bytes = parts.find(2)->second;
    scalars[parts.find(1)->second] = TakeInteger<float>(bytes);
  }
  return scalars;
}

// What TensorBoard shows of a folder: its files in the order of their names, and a SessionLog.START
// makes it forget what it had of that step and later ones. Name -> step -> values, of which there
// should be one.
using ShownScalars = std::map<std::string, std::map<int64_t, std::vector<float>>>;
inline ShownScalars ScalarsShown(const std::filesystem::path& folder) {
  std::set<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files.insert(entry.path());
  ShownScalars shown;
  for (const std::filesystem::path& file : files) {
    for (const std::string& event : EventRecords(ReadFile(file))) {
      const auto fields = ProtoFields(event);
      const auto step_field = fields.find(2);
      const int64_t step = step_field == fields.end() ? 0 : std::stoll(step_field->second);
      if (fields.contains(7)) {
        for (auto& [name, steps] : shown) steps.erase(steps.lower_bound(step), steps.end());
      }
      if (!fields.contains(5)) continue;
      for (const auto& [name, value] : EventScalars(event)) shown[name][step].push_back(value);
    }
  }
  return shown;
}

}  // namespace quatrain
