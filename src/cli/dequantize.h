// `quatrain dequantize`.
#pragma once

namespace CLI {
class App;
}

namespace quatrain {

void AddDequantizeCommand(CLI::App& app);

}  // namespace quatrain
