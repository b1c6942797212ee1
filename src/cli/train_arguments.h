// The arguments of `quatrain train` before CLI11 reads them: the config file, the field's flags,
// and names that nobody knows.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

struct TrainArguments {
  std::vector<std::string> own;    // for CLI11, in order; of a flag given twice the last
  std::vector<std::string> notes;  // one line for each of the field's flags that we do not need
};

// `arguments` stand behind "train". `own_flags` are the names that CLI11 knows, with "--".
//
//   --config FILE   TOML whose keys are names of flags, without "--", of ours or of the field's; a
//                   list is several values, true a flag without a value, false leaves it out;
//                   perhaps under [train]. The command line wins over the file.
//
// As with argparse the last of two equal flags wins. Error kUsage: an unknown flag, with the
// nearest known name; a flag of the field that is refused (foreign_flags.h); kIo, kData: the file.
TrainArguments PrepareTrainArguments(const std::vector<std::string>& arguments,
                                     const std::set<std::string>& own_flags);

// The name of `names` that takes the fewest insertions, deletions and replacements of characters;
// empty if none comes closer than a third of the name.
std::string NearestName(std::string_view name, const std::set<std::string>& names);

}  // namespace quatrain
