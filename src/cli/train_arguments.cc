#include "cli/train_arguments.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <numeric>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "cli/foreign_flags.h"

namespace quatrain {
namespace {

constexpr const char* kConfigFlag = "--config";

// A flag and the values behind it; a name of "" holds values before the first flag.
struct Group {
  std::string name;
  std::vector<std::string> values;
};

bool IsFlag(const std::string& argument) {
  return argument.size() > 2 && argument.starts_with("--");
}

std::vector<Group> Split(const std::vector<std::string>& arguments) {
  std::vector<Group> groups;
  for (const std::string& argument : arguments) {
    if (argument == "-h") {
      groups.push_back({"--help", {}});
    } else if (IsFlag(argument)) {
      const size_t equals = argument.find('=');
      groups.push_back({argument.substr(0, equals), {}});
      if (equals != std::string::npos) groups.back().values.push_back(argument.substr(equals + 1));
    } else {
      if (groups.empty()) groups.push_back({});
      groups.back().values.push_back(argument);
    }
  }
  return groups;
}

std::vector<Group> ReadConfig(const std::string& path) {
  std::istringstream stream(ReadFile(path));
  std::vector<CLI::ConfigItem> items;
  try {
    items = CLI::ConfigTOML().from_config(stream);
  } catch (const CLI::Error& error) {
    throw Error(ErrorCode::kData, {.where = path, .what = error.what(), .expected = "TOML"});
  }
  std::vector<Group> groups;
  for (const CLI::ConfigItem& item : items) {
    if (item.name == "++" || item.name == "--") continue;  // marks of sections
    const bool is_known_place =
        item.parents.empty() || item.parents == std::vector<std::string>{"train"};
    if (!is_known_place) {
      throw Error(ErrorCode::kData, {.where = path,
                                     .what = "a section of another name",
                                     .expected = "none, or [train]",
                                     .found = "[" + item.parents[0] + "]"});
    }
    std::string name = item.name;
    std::replace(name.begin(), name.end(), '_', '-');
    Group group{"--" + name, item.inputs};
    if (group.values == std::vector<std::string>{"false"}) continue;
    if (group.values == std::vector<std::string>{"true"}) group.values.clear();
    groups.push_back(std::move(group));
  }
  return groups;
}

// The file's flags, then those of the command line.
std::vector<Group> WithConfig(std::vector<Group> groups) {
  std::vector<Group> merged, given;
  for (Group& group : groups) {
    if (group.name != kConfigFlag) {
      given.push_back(std::move(group));
      continue;
    }
    if (group.values.size() != 1) {
      throw Error(ErrorCode::kUsage,
                  {.where = kConfigFlag, .what = "it names one file", .expected = "--config FILE"});
    }
    for (Group& read : ReadConfig(group.values[0])) merged.push_back(std::move(read));
  }
  std::move(given.begin(), given.end(), std::back_inserter(merged));
  return merged;
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

[[noreturn]] void Unknown(const std::string& name, const std::set<std::string>& own_flags) {
  std::set<std::string> names = own_flags;
  names.insert(kConfigFlag);
  for (const ForeignFlag& flag : ForeignFlags()) {
    if (!flag.name.ends_with('*')) names.insert(std::string(flag.name));
  }
  const std::string nearest = NearestName(name, names);
  throw Error(ErrorCode::kUsage,
              {.where = name,
               .what = "unknown flag",
               .todo = nearest.empty() ? "See quatrain train --help and docs/flags.md"
                                       : "Did you mean " + nearest + "?"});
}

}  // namespace

std::string NearestName(std::string_view name, const std::set<std::string>& names) {
  std::string nearest;
  size_t least = std::max<size_t>(name.size() / 3, 2) + 1;
  for (const std::string& other : names) {
    const size_t distance = EditDistance(name, other);
    if (distance >= least) continue;
    least = distance;
    nearest = other;
  }
  return nearest;
}

TrainArguments PrepareTrainArguments(const std::vector<std::string>& arguments,
                                     const std::set<std::string>& own_flags) {
  const std::vector<Group> groups = WithConfig(Split(arguments));
  TrainArguments prepared;
  for (size_t i = 0; i < groups.size(); ++i) {
    const Group& group = groups[i];
    const bool is_repeated = std::any_of(
        groups.begin() + static_cast<std::ptrdiff_t>(i) + 1, groups.end(),
        [&](const Group& later) { return !group.name.empty() && later.name == group.name; });
    if (is_repeated) continue;
    if (group.name.empty() || own_flags.contains(group.name)) {
      if (!group.name.empty()) prepared.own.push_back(group.name);
      prepared.own.insert(prepared.own.end(), group.values.begin(), group.values.end());
      continue;
    }
    const ForeignFlag* foreign = FindForeignFlag(group.name);
    if (foreign == nullptr) Unknown(group.name, own_flags);
    prepared.notes.push_back(TreatForeignFlag(*foreign, group.name, group.values));
  }
  return prepared;
}

}  // namespace quatrain
