// The weight table of a model whose architecture has no recipe here, from the names and shapes of
// its tensors alone: enough to round its linears to nearest, not to run it.
#pragma once

#include <vector>

#include "base/json.h"
#include "io/tensor_set.h"
#include "models/families.h"

namespace quatrain {

// Rows for every tensor whose part is plain from its name, layers ascending: the projections of
// attention and MLP (of Llama's, DeepSeek's and Mixtral's names), experts (fused 3-D ones as a row
// an expert and projection, where the shapes are those of transformers 5: [E, 2 I, D] and
// [E, D, I]), routers, norms, embedding, lm_head. A quantised linear counts by its weight_shape.
// What is not listed is not understood: vision towers, layers beyond num_hidden_layers (MTP), other
// names.
std::vector<WeightSpec> WeightTableFromNames(const TensorSet& tensors, const Json& config);

}  // namespace quatrain
