// Flags of the field's recipes (Miles, slime: with Megatron and SGLang underneath) that are not
// ours.
//
// Each is accepted, with one line of what we do instead, or refused, with what to do instead; so a
// recipe runs by changing the program's name, and nothing that would change its result is dropped
// in silence. docs/flags.md lists them by group.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

struct ForeignFlag {
  enum class Values { kNone, kOne, kMany };  // that follow the flag
  enum class Treatment { kAccepted, kRefused };
  std::string_view name;  // with "--"; a name that ends in "*" stands for all that begin so
  Values values;
  Treatment treatment;
  std::string_view note;  // what we do instead, or what to do instead
  // Values that mean what we do, separated by spaces; others are refused. Empty: any.
  std::string_view accepted_values = {};
};

// The whole table; names are unique.
const std::vector<ForeignFlag>& ForeignFlags();

// The entry of "--name", exact names before patterns; null if there is none.
const ForeignFlag* FindForeignFlag(std::string_view name);

// A flag with its values on the way through: the note to print. Error kUsage if it is refused, has
// values where it takes none or the reverse, or a value that cannot be honoured.
std::string TreatForeignFlag(const ForeignFlag& flag, const std::string& name,
                             const std::vector<std::string>& values);

}  // namespace quatrain
