// The machine that advice is about.
//
//   "8xH100"         a count and a device that kMachines of machine.cc knows
//   machine.json     {"name": "mine", "devices": 8, "device_memory_gb": 80, "devices_per_node": 8}
#pragma once

#include <cstdint>
#include <string>

namespace quatrain {

struct Machine {
  std::string name;
  int64_t num_devices = 1;
  int64_t devices_per_node = 8;
  double device_bytes = 0;  // of one

  double total_bytes() const { return static_cast<double>(num_devices) * device_bytes; }
};

// Empty text: this host, one device with its available memory. Error kUsage naming the known
// devices; kData naming file and field.
Machine ParseMachine(const std::string& text);

}  // namespace quatrain
