#include "cli/machine.h"

#include <charconv>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

namespace quatrain {
namespace {

constexpr double kGigabyte = 1e9;

// Memory as the vendors' data sheets give it, in gigabytes.
const std::map<std::string, double>& Devices() {
  static const std::map<std::string, double> kDevices = {
      {"A100", 80}, {"B200", 180}, {"H100", 80}, {"H200", 141}, {"L40S", 48}, {"MI300X", 192}};
  return kDevices;
}

[[noreturn]] void UnknownMachine(const std::string& text) {
  std::string names;
  for (const auto& [name, memory] : Devices()) names += (names.empty() ? "" : ", ") + name;
  throw Error(ErrorCode::kUsage, {.where = "--machine",
                                  .what = "no file and no known machine",
                                  .expected = "e.g. 8xH100, of " + names + "; or a JSON file",
                                  .found = "'" + text + "'"});
}

double PositiveNumber(const Json& json, const char* key, double otherwise,
                      const std::string& where) {
  const auto found = json.find(key);
  if (found == json.end() && otherwise > 0) return otherwise;
  if (found != json.end() && found->is_number() && found->get<double>() > 0)
    return found->get<double>();
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = fmt::format("\"{}\" of the machine", key),
                                 .expected = "a positive number",
                                 .found = found == json.end() ? "nothing" : DumpJson(*found)});
}

Machine ReadMachine(const std::string& path) {
  const Json json = ParseJson(ReadFile(path), path);
  if (!json.is_object()) {
    throw Error(ErrorCode::kData, {.where = path,
                                   .what = "not a description of a machine",
                                   .expected = R"({"devices": 8, "device_memory_gb": 80})",
                                   .found = json.type_name()});
  }
  for (const auto& item : json.items()) {
    const std::string& key = item.key();
    if (key != "name" && key != "devices" && key != "device_memory_gb" &&
        key != "devices_per_node") {
      throw Error(ErrorCode::kData,
                  {.where = path,
                   .what = "unknown field \"" + key + "\"",
                   .expected = "name, devices, device_memory_gb or devices_per_node"});
    }
  }
  Machine machine;
  machine.name = json.value("name", std::filesystem::path(path).stem().string());
  machine.num_devices = static_cast<int64_t>(PositiveNumber(json, "devices", 0, path));
  machine.device_bytes = kGigabyte * PositiveNumber(json, "device_memory_gb", 0, path);
  machine.devices_per_node = static_cast<int64_t>(
      PositiveNumber(json, "devices_per_node", static_cast<double>(machine.num_devices), path));
  return machine;
}

}  // namespace

Machine ParseMachine(const std::string& text) {
  if (text.empty()) {
    return {.name = "this host",
            .num_devices = 1,
            .devices_per_node = 1,
            .device_bytes = static_cast<double>(AvailableMemoryBytes())};
  }
  if (std::filesystem::is_regular_file(text)) return ReadMachine(text);
  const size_t cross = text.find('x');
  if (cross == std::string::npos) UnknownMachine(text);
  int64_t count = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + cross, count);
  const auto device = Devices().find(text.substr(cross + 1));
  if (status != std::errc() || end != text.data() + cross || count <= 0 ||
      device == Devices().end())
    UnknownMachine(text);
  return {.name = text,
          .num_devices = count,
          .devices_per_node = std::min<int64_t>(count, 8),
          .device_bytes = kGigabyte * device->second};
}

}  // namespace quatrain
