// The folder of a run (--save): what may become one.
#pragma once

#include <filesystem>

namespace quatrain {

// Creates `save` for a new run, or for the one that --load resumes. Error kUsage: it is a model
// directory, whose config.json the run's would replace, or holds another run, whose metrics this
// one's would be mixed with. Error kIo: it is a file or cannot be written. Nothing else is
// written. `load` is empty without --load.
void PrepareRunFolder(const std::filesystem::path& save, const std::filesystem::path& load);

}  // namespace quatrain
