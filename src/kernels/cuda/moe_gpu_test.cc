#if defined(QT_WITH_CUDA)
#include <algorithm>
#include <numeric>
#include <tuple>

#include "kernels/cuda/device_weight_test.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear_reference.h"
#include "kernels/cuda/moe.h"

namespace quatrain::cuda {
namespace {

constexpr LaunchOrder kAfter = LaunchOrder::kAfterPrevious;

// Device memory of a routing.
struct Routing {
  int64_t num_experts;
  DeviceVector<int32_t> ids, expert_begin, row_token, slot_row, tiles, num_tiles, counters;
  DeviceVector<float> weights, logits;

  Routing(int64_t tokens, int64_t experts, int64_t slots)
      : num_experts(experts),
        ids(tokens * slots),
        expert_begin(experts + 1),
        row_token(tokens * slots),
        slot_row(tokens * slots),
        tiles(4 * MaxMoeTiles(tokens * slots, experts)),
        num_tiles(1),
        counters(RouterCounters(tokens)),
        weights(tokens * slots),
        logits(tokens * experts) {
    counters.Zero();
  }
  MoeRouting Get() {
    return {.ids = ids.data(),
            .weights = weights.data(),
            .expert_begin = expert_begin.data(),
            .row_token = row_token.data(),
            .slot_row = slot_row.data(),
            .tiles = reinterpret_cast<MoeTile*>(tiles.data()),
            .num_tiles = num_tiles.data()};
  }
  // The rows are those of PermuteByExpert, the tiles cover them.
  void ExpectSorted(int64_t slots) {
    const MoePermutation expected = PermuteByExpert(ids.Download(), num_experts, slots);
    const std::vector<int32_t> begin = expert_begin.Download();
    EXPECT_TRUE(std::equal(begin.begin(), begin.end(), expected.expert_begin.begin(),
                           expected.expert_begin.end()));
    EXPECT_EQ(row_token.Download(), expected.row_token);
    EXPECT_EQ(slot_row.Download(), expected.slot_row);
    std::vector<int32_t> expected_tiles;
    for (int32_t e = 0; e < num_experts; ++e) {
      for (int32_t row = begin[e]; row < begin[e + 1]; row += kMoeTileRows) {
        expected_tiles.insert(expected_tiles.end(),
                              {e, row, std::min(kMoeTileRows, begin[e + 1] - row), 1});
      }
    }
    ASSERT_EQ(num_tiles.Download()[0] * 4, std::ssize(expected_tiles));
    std::vector<int32_t> found = tiles.Download();
    ASSERT_LE(expected_tiles.size(), found.size());
    found.resize(expected_tiles.size());
    EXPECT_EQ(found, expected_tiles);
  }
};

struct RouterCase {
  int64_t tokens, experts, slots, hidden;
  bool norm;
};

class MoeRouterGpu : public testing::TestWithParam<RouterCase> {};

TEST_P(MoeRouterGpu, ChoosesWeighsAndSortsAsTheCpu) {
  QT_NEEDS_DEVICE();
  const RouterCase& c = GetParam();
  const RouterConfig config{c.experts, c.slots, c.norm};
  const std::vector<BFloat16> x = RandomRounded<BFloat16>(c.tokens * c.hidden, 1);
  DeviceVector<BFloat16> device_x(x);
  DeviceVector<BFloat16> weight(RandomRounded<BFloat16>(c.experts * c.hidden, 2, 0.1f));
  Routing routing(c.tokens, c.experts, c.slots);
  MoeRouterArgs args{.config = config,
                     .x = device_x.data(),
                     .weight_ED = weight.data(),
                     .num_tokens = c.tokens,
                     .hidden = c.hidden,
                     .logits_TE = routing.logits.data(),
                     .routing = routing.Get(),
                     .counters = routing.counters.data()};
  ThreadPool pool(1);
  std::vector<int32_t> ids(c.tokens * c.slots);
  std::vector<float> weights(ids.size());
  // Several times, each beside the end of the one before: a call leaves the counters as it found
  // them. The third run has the ids given.
  for (int run = 0; run < 3; ++run) {
    DeviceVector<int32_t> given(ids);
    if (run == 2) args.replayed_ids = given.data();
    for (int i = 0; i < 8; ++i) MoeRouter(args, nullptr, i == 0 ? kAfter : LaunchOrder::kOverlap);
    const std::vector<float> logits = routing.logits.Download();
    if (run == 0) {
      DeviceVector<float> reference(c.tokens * c.experts);
      LinearReference({.weight_NK = weight.data(),
                       .x = device_x.data(),
                       .out_features = c.experts,
                       .in_features = c.hidden,
                       .num_tokens = c.tokens,
                       .segment_inputs = c.hidden,
                       .y_float = reference.data()},
                      nullptr);
      EXPECT_EQ(CountDifferences(logits, reference.Download()), 0);
    }
    // The third time in another order of slots.
    RouterForward(pool, config, logits.data(), c.tokens, run == 2, ids.data(), weights.data());
    EXPECT_EQ(routing.ids.Download(), ids) << "run " << run;
    const std::vector<float> found = routing.weights.Download();
    for (size_t i = 0; i < weights.size(); ++i) {
      ASSERT_NEAR(found[i], weights[i], 2e-6f * weights[i]) << "run " << run << ", " << i;
    }
    routing.ExpectSorted(c.slots);
    for (const int32_t counter : routing.counters.Download()) EXPECT_EQ(counter, 0);
    for (int64_t t = 0; run == 1 && t < c.tokens; ++t) {
      std::rotate(ids.begin() + t * c.slots, ids.begin() + t * c.slots + t % c.slots,
                  ids.begin() + (t + 1) * c.slots);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, MoeRouterGpu,
    testing::Values(RouterCase{1, 128, 8, 2048, true}, RouterCase{1, 20, 3, 264, false},
                    RouterCase{1, 384, 8, 512, true}, RouterCase{17, 128, 8, 256, true},
                    RouterCase{40, 60, 4, 264, false}, RouterCase{5, 8, 2, 64, true},
                    RouterCase{33, 384, 8, 512, true}, RouterCase{100, 1000, 6, 128, false},
                    RouterCase{256, 128, 8, 2048, true}, RouterCase{70, 128, 8, 3072, true}));

TEST(MoeRouterGpu, BreaksTiesByIndex) {
  QT_NEEDS_DEVICE();
  const int64_t tokens = 3;
  const int64_t hidden = 64;
  // Expert e has the row of e / 10: ten equal logits each; token 2 has all logits zero.
  std::vector<BFloat16> weight;
  for (int64_t e = 0; e < 128; ++e) {
    const std::vector<BFloat16> row = RandomRounded<BFloat16>(hidden, 100 + e / 10);
    weight.insert(weight.end(), row.begin(), row.end());
  }
  std::vector<BFloat16> x = RandomRounded<BFloat16>(tokens * hidden, 5);
  std::fill(x.begin() + 2 * hidden, x.end(), BFloat16{0});
  DeviceVector<BFloat16> device_x(x), device_weight(weight);
  Routing routing(tokens, 128, 8);
  MoeRouter({.config = {128, 8, true},
             .x = device_x.data(),
             .weight_ED = device_weight.data(),
             .num_tokens = tokens,
             .hidden = hidden,
             .logits_TE = routing.logits.data(),
             .routing = routing.Get(),
             .counters = routing.counters.data()},
            nullptr, kAfter);
  const std::vector<int32_t> ids = routing.ids.Download();
  for (int slot = 0; slot < 8; ++slot) {
    EXPECT_EQ(ids[slot], ids[0] / 10 * 10 + slot);
    EXPECT_EQ(ids[16 + slot], slot);
  }
}

TEST(MoeRouterGpu, RefusesSizesOutsideTheContract) {
  MoeRouterArgs args{.config = {2000, 8, true}, .num_tokens = 1, .hidden = 64};
  EXPECT_THROW(MoeRouter(args, nullptr, kAfter), Error);
  args.config = {64, 40, true};
  EXPECT_THROW(MoeRouter(args, nullptr, kAfter), Error);
  args.config = {64, 8, true};
  args.hidden = 60;
  EXPECT_THROW(MoeRouter(args, nullptr, kAfter), Error);
}

TEST(MoeExpertsGpu, RefusesWeightsOutsideTheContract) {
  // INT8; no whole pairs of units; no whole groups; no such group.
  for (const PackedShape& shape : {PackedShape{16, 128, 32, 8}, PackedShape{24, 128, 32, 4},
                                   PackedShape{16, 144, 32, 4}, PackedShape{16, 128, 16, 4}}) {
    const MoeExpertsArgs args{.shape = shape, .num_experts = 4, .num_tokens = 1, .num_slots = 2};
    for (const auto& launch : {MoeGateUp, MoeDown, MoeGateUpOfRows, MoeDownOfRows}) {
      EXPECT_THROW(launch(args, nullptr, kAfter), Error) << shape.in_features;
    }
  }
}

struct LayerCase {
  int64_t experts, slots, hidden, inter, group;
};

// A layer of experts on the device, and its answer from the plain parts.
class Layer {
 public:
  Layer(const LayerCase& layer, int64_t most_tokens)
      : c(layer),
        gate_up({c.experts * 2 * c.inter, c.hidden, c.group, 4},
                RandomCodes({c.experts * 2 * c.inter, c.hidden, c.group, 4}, 21)),
        down({c.experts * c.hidden, c.inter, c.group, 4},
             RandomCodes({c.experts * c.hidden, c.inter, c.group, 4}, 22)),
        router(RandomRounded<BFloat16>(c.experts * c.hidden, 23, 0.2f)),
        x(RandomRounded<BFloat16>(most_tokens * c.hidden, 24)) {}

  void Route(int64_t tokens, Routing* routing, cudaStream_t stream, LaunchOrder order) {
    MoeRouter({.config = {c.experts, c.slots, true},
               .x = x.data(),
               .weight_ED = router.data(),
               .num_tokens = tokens,
               .hidden = c.hidden,
               .replayed_ids = replayed_ids,
               .logits_TE = routing->logits.data(),
               .routing = routing->Get(),
               .counters = routing->counters.data()},
              stream, order);
  }
  MoeExpertsArgs ArgsOf(int64_t tokens, Routing* routing) {
    return {.num_experts = c.experts,
            .num_tokens = tokens,
            .num_slots = c.slots,
            .routing = routing->Get(),
            .plan = plan};
  }
  void GateUp(int64_t tokens, Routing* routing, BFloat16* h, cudaStream_t stream,
              LaunchOrder order) {
    MoeExpertsArgs args = ArgsOf(tokens, routing);
    args.shape = {2 * c.inter, c.hidden, c.group, 4};
    args.weight = gate_up.packed.data();
    args.x = x.data();
    args.y = h;
    MoeGateUp(args, stream, order);
  }
  void Down(int64_t tokens, Routing* routing, const BFloat16* h, BFloat16* y, cudaStream_t stream,
            LaunchOrder order) {
    MoeExpertsArgs args = ArgsOf(tokens, routing);
    args.shape = {c.hidden, c.inter, c.group, 4};
    args.weight = down.packed.data();
    args.x = h;
    args.y = y;
    MoeDown(args, stream, order);
  }
  void Combine(int64_t tokens, Routing* routing, const BFloat16* y, BFloat16* out,
               cudaStream_t stream, LaunchOrder order) {
    MoeCombine({.y = y,
                .routing = routing->Get(),
                .num_tokens = tokens,
                .num_slots = c.slots,
                .hidden = c.hidden,
                .out = out},
               stream, order);
  }

  // Both in one call.
  void DownAndCombine(int64_t tokens, Routing* routing, const BFloat16* h, MoeCombineArgs combine,
                      BFloat16* y, cudaStream_t stream, LaunchOrder order) {
    MoeExpertsArgs args = ArgsOf(tokens, routing);
    args.shape = {c.hidden, c.inter, c.group, 4};
    args.weight = down.packed.data();
    args.x = h;
    args.y = y;
    combine.y = y;
    combine.routing = routing->Get();
    combine.num_tokens = tokens;
    combine.num_slots = c.slots;
    combine.hidden = c.hidden;
    MoeDownAndCombine(args, combine, stream, order);
  }

  // Rounded sums of rows_RK with each expert's [N, K] of `weight`.
  std::vector<BFloat16> Reference(DeviceWeight* weight, int64_t n, int64_t k,
                                  const std::vector<BFloat16>& rows,
                                  const MoePermutation& permutation) {
    DeviceVector<BFloat16> device_rows(rows);
    DeviceVector<float> y(rows.size() / k * n);
    for (int64_t e = 0; e < c.experts; ++e) {
      const int64_t begin = permutation.expert_begin[e];
      LinearReference({.weight_NK = weight->plain.data() + e * n * k,
                       .x = device_rows.data() + begin * k,
                       .out_features = n,
                       .in_features = k,
                       .num_tokens = permutation.expert_begin[e + 1] - begin,
                       .segment_inputs = k,
                       .y_float = y.data() + begin * n},
                      nullptr);
    }
    return RoundAll<BFloat16>(y.Download());
  }

  LayerCase c;
  MoePlan plan;
  const int32_t* replayed_ids = nullptr;
  DeviceWeight gate_up, down;
  DeviceVector<BFloat16> router, x;
};

// each += its residual, rounded.
void AddResidual(const std::vector<BFloat16>& residual, std::vector<BFloat16>* each) {
  for (size_t i = 0; i < each->size(); ++i) {
    (*each)[i] = ToBFloat16(ToFloat(residual[i]) + ToFloat((*each)[i]));
  }
}

// One step of `tokens`, each part overlapping the one before, beside the plain parts.
void ExpectReferenceChains(Layer* layer, int64_t tokens) {
  const LayerCase& c = layer->c;
  const int64_t rows = tokens * c.slots;
  ThreadPool pool(1);
  Routing routing(tokens, c.experts, c.slots);
  DeviceVector<BFloat16> h(rows * c.inter), y(rows * c.hidden), out(tokens * c.hidden);
  layer->Route(tokens, &routing, nullptr, kAfter);
  layer->GateUp(tokens, &routing, h.data(), nullptr, LaunchOrder::kOverlap);
  layer->Down(tokens, &routing, h.data(), y.data(), nullptr, LaunchOrder::kOverlap);
  layer->Combine(tokens, &routing, y.data(), out.data(), nullptr, LaunchOrder::kOverlap);

  const MoePermutation permutation = PermuteByExpert(routing.ids.Download(), c.experts, c.slots);
  std::vector<BFloat16> gathered(rows * c.hidden);
  GatherRows<BFloat16>(pool, layer->x.Download().data(), permutation, c.hidden, gathered.data());
  DeviceVector<BFloat16> gate_up(
      layer->Reference(&layer->gate_up, 2 * c.inter, c.hidden, gathered, permutation));
  DeviceVector<BFloat16> expected_h(rows * c.inter);
  SwiGlu({gate_up.data(), gate_up.data() + c.inter, rows, c.inter, 2 * c.inter, expected_h.data()},
         nullptr, kAfter);
  EXPECT_EQ(CountDifferences(h.Download(), expected_h.Download()), 0) << tokens << " tokens";
  const std::vector<BFloat16> expected_y =
      layer->Reference(&layer->down, c.hidden, c.inter, expected_h.Download(), permutation);
  EXPECT_EQ(CountDifferences(y.Download(), expected_y), 0) << tokens << " tokens";
  std::vector<BFloat16> expected_out(tokens * c.hidden);
  CombineForward<BFloat16>(pool, expected_y.data(), routing.weights.Download().data(), permutation,
                           c.hidden, expected_out.data());
  EXPECT_EQ(CountDifferences(out.Download(), expected_out), 0) << tokens << " tokens";
  DeviceVector<BFloat16> residual(RandomRounded<BFloat16>(tokens * c.hidden, 25));
  y.Zero();
  layer->DownAndCombine(tokens, &routing, h.data(),
                        {.residual = residual.data(), .out = out.data()}, y.data(), nullptr,
                        kAfter);
  EXPECT_EQ(CountDifferences(y.Download(), expected_y), 0) << tokens << " tokens";
  AddResidual(residual.Download(), &expected_out);
  EXPECT_EQ(CountDifferences(out.Download(), expected_out), 0) << tokens << " tokens";
}

class MoeExpertsGpu : public testing::TestWithParam<LayerCase> {};

TEST_P(MoeExpertsGpu, AreTheReferenceChainsForEveryNumberOfTokens) {
  QT_NEEDS_DEVICE();
  Layer layer(GetParam(), 256);
  for (const int64_t tokens : {1, 2, 8, 9, 33, 256}) ExpectReferenceChains(&layer, tokens);
}

INSTANTIATE_TEST_SUITE_P(
    Layers, MoeExpertsGpu,
    testing::Values(LayerCase{8, 2, 320, 96, 32}, LayerCase{4, 4, 256, 128, 128},
                    LayerCase{40, 6, 512, 192, 64}, LayerCase{16, 8, 512, 384, 32},
                    LayerCase{12, 8, 128, 1280, 128}, LayerCase{40, 10, 256, 128, 32}));

// The kernels of a single token at the sizes of a model, and behind either router.
class MoeTokenGpu : public testing::TestWithParam<LayerCase> {};

TEST_P(MoeTokenGpu, IsTheReferenceChains) {
  QT_NEEDS_DEVICE();
  Layer layer(GetParam(), 1);
  ExpectReferenceChains(&layer, 1);
}

TEST_P(MoeTokenGpu, TakesReplayedIdsInAnyOrderAndMoreThanOnce) {
  QT_NEEDS_DEVICE();
  Layer layer(GetParam(), 1);
  std::vector<int32_t> ids(layer.c.slots);
  const auto last = static_cast<int32_t>(layer.c.experts - 1);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = last - static_cast<int32_t>(5 * i % ids.size());
  for (int run = 0; run < 2; ++run) {
    DeviceVector<int32_t> device_ids(ids);
    layer.replayed_ids = device_ids.data();
    ExpectReferenceChains(&layer, 1);
    ids.front() = ids.back() = ids[1];
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layers, MoeTokenGpu,
    testing::Values(LayerCase{16, 8, 2048, 768, 32}, LayerCase{144, 8, 128, 128, 32},
                    LayerCase{24, 3, 384, 128, 128}, LayerCase{16, 4, 320, 128, 32},
                    // A last copy shorter than the others.
                    LayerCase{12, 4, 1152, 256, 64}, LayerCase{9, 3, 896, 224, 32}));

class MoeManyRowsGpu : public testing::TestWithParam<std::tuple<int64_t, LayerCase>> {};

// Against the kernels for few rows, which are checked above.
TEST_P(MoeManyRowsGpu, GiveTheSameBits) {
  QT_NEEDS_DEVICE();
  const auto& [tokens, c] = GetParam();
  ThreadPool pool(1);
  Layer layer(c, tokens);
  const int64_t rows = tokens * c.slots;
  Routing routing(tokens, c.experts, c.slots);
  DeviceVector<BFloat16> h(rows * c.inter), y(rows * c.hidden);
  layer.Route(tokens, &routing, nullptr, kAfter);
  layer.GateUp(tokens, &routing, h.data(), nullptr, kAfter);
  layer.Down(tokens, &routing, h.data(), y.data(), nullptr, kAfter);
  std::vector<BFloat16> gathered(rows * c.hidden);
  GatherRows<BFloat16>(pool, layer.x.Download().data(),
                       PermuteByExpert(routing.ids.Download(), c.experts, c.slots), c.hidden,
                       gathered.data());
  DeviceVector<BFloat16> x(gathered), wide_h(rows * c.inter), wide_y(rows * c.hidden);
  MoeExpertsArgs args = layer.ArgsOf(tokens, &routing);
  args.shape = {2 * c.inter, c.hidden, c.group, 4};
  args.weight = layer.gate_up.packed.data();
  args.x = x.data();
  args.y = wide_h.data();
  MoeGateUpOfRows(args, nullptr, kAfter);
  EXPECT_EQ(CountDifferences(wide_h.Download(), h.Download()), 0);
  args.shape = {c.hidden, c.inter, c.group, 4};
  args.weight = layer.down.packed.data();
  args.x = wide_h.data();
  args.y = wide_y.data();
  MoeDownOfRows(args, nullptr, LaunchOrder::kOverlap);
  EXPECT_EQ(CountDifferences(wide_y.Download(), y.Download()), 0);
}

INSTANTIATE_TEST_SUITE_P(Layers, MoeManyRowsGpu,
                         testing::Combine(testing::Values(1, 40, 700),
                                          testing::Values(LayerCase{8, 2, 320, 96, 32},
                                                          LayerCase{40, 6, 512, 192, 64},
                                                          LayerCase{4, 4, 256, 128, 128},
                                                          LayerCase{128, 8, 256, 160, 32})));

TEST(MoeExpertsGpu, EveryPlanGivesTheSameBits) {
  QT_NEEDS_DEVICE();
  const LayerCase c{24, 4, 256, 160, 32};
  const int64_t tokens = 50;
  Layer layer(c, tokens);
  Routing routing(tokens, c.experts, c.slots);
  layer.Route(tokens, &routing, nullptr, kAfter);
  std::vector<BFloat16> first_h, first_y;
  for (const int groups : {0, 1, 3, 8}) {
    for (const int per_multiprocessor : {1, 2}) {
      layer.plan = {groups, per_multiprocessor};
      DeviceVector<BFloat16> h(tokens * c.slots * c.inter), y(tokens * c.slots * c.hidden);
      layer.GateUp(tokens, &routing, h.data(), nullptr, kAfter);
      layer.Down(tokens, &routing, h.data(), y.data(), nullptr, kAfter);
      if (first_h.empty()) {
        first_h = h.Download();
        first_y = y.Download();
      }
      EXPECT_EQ(CountDifferences(h.Download(), first_h), 0) << groups << per_multiprocessor;
      EXPECT_EQ(CountDifferences(y.Download(), first_y), 0) << groups << per_multiprocessor;
    }
  }
}

class MoeGraphGpu : public testing::TestWithParam<std::pair<int64_t, int64_t>> {};

TEST_P(MoeGraphGpu, ServesEveryRouting) {
  QT_NEEDS_DEVICE();
  const auto [tokens, experts] = GetParam();
  const LayerCase c{experts, 4, 256, 128, 32};
  Layer layer(c, tokens);
  Routing routing(tokens, c.experts, c.slots);
  DeviceVector<BFloat16> h(tokens * c.slots * c.inter), y(tokens * c.slots * c.hidden),
      out(tokens * c.hidden);
  const auto run = [&](cudaStream_t stream, LaunchOrder order) {
    layer.Route(tokens, &routing, stream, order);
    layer.GateUp(tokens, &routing, h.data(), stream, order);
    layer.DownAndCombine(tokens, &routing, h.data(),
                         {.residual = layer.x.data(), .out = out.data()}, y.data(), stream, order);
  };
  DeviceGraph graph([&](cudaStream_t stream) { run(stream, LaunchOrder::kOverlap); });
  for (const uint64_t seed : {31, 32, 33}) {
    const std::vector<BFloat16> x = RandomRounded<BFloat16>(tokens * c.hidden, seed);
    CheckCuda(cudaMemcpy(layer.x.data(), x.data(), 2 * x.size(), cudaMemcpyHostToDevice), "x");
    for (int replay = 0; replay < 3; ++replay) graph.Replay();
    const std::vector<BFloat16> from_graph = out.Download();
    out.Zero();
    run(graph.stream(), kAfter);
    EXPECT_EQ(CountDifferences(out.Download(), from_graph), 0) << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Tokens, MoeGraphGpu,
                         testing::Values(std::pair{1, 16}, std::pair{1, 144}, std::pair{12, 16},
                                         std::pair{256, 16}, std::pair{64, 128},
                                         std::pair{160, 64}));

struct ManyRouters {
  int64_t tokens, experts, hidden;
  int routers, replays;
};
class ManyRoutersGpu : public testing::TestWithParam<ManyRouters> {};

// CTAs of the next routers start on multiprocessors where one still sorts.
TEST_P(ManyRoutersGpu, InAGraphLeaveWhatOneLeaves) {
  QT_NEEDS_DEVICE();
  const ManyRouters& c = GetParam();
  Layer layer({c.experts, 8, c.hidden, 64, 32}, c.tokens);
  Routing routing(c.tokens, c.experts, 8);
  DeviceGraph graph([&](cudaStream_t stream) {
    for (int i = 0; i < c.routers; ++i) {
      layer.Route(c.tokens, &routing, stream, LaunchOrder::kOverlap);
    }
  });
  for (int i = 0; i < c.replays; ++i) graph.Replay();
  CheckCuda(cudaStreamSynchronize(graph.stream()), "routers");
  routing.ExpectSorted(8);
  for (const int32_t counter : routing.counters.Download()) EXPECT_EQ(counter, 0);
}

INSTANTIATE_TEST_SUITE_P(Short, ManyRoutersGpu,
                         testing::Values(ManyRouters{256, 128, 512, 24, 2},
                                         ManyRouters{512, 64, 512, 24, 2}));
INSTANTIATE_TEST_SUITE_P(Long, ManyRoutersGpu,
                         testing::Values(ManyRouters{256, 128, 2048, 48, 4},
                                         ManyRouters{512, 64, 2048, 48, 4}));

TEST(MoeExpertsGpu, CombineAddsTheResidualAfterItsRounding) {
  QT_NEEDS_DEVICE();
  const int64_t tokens = 5, slots = 3, hidden = 72;
  std::vector<int32_t> slot_row(tokens * slots);
  std::iota(slot_row.begin(), slot_row.end(), 0);
  std::reverse(slot_row.begin(), slot_row.end());
  const std::vector<BFloat16> y = RandomRounded<BFloat16>(tokens * slots * hidden, 1);
  const std::vector<BFloat16> residual = RandomRounded<BFloat16>(tokens * hidden, 2);
  const std::vector<float> weights = RandomFloats(tokens * slots, 3);
  DeviceVector<BFloat16> device_y(y), device_residual(residual), out(tokens * hidden);
  DeviceVector<int32_t> device_rows(slot_row);
  DeviceVector<float> device_weights(weights);
  MoeCombine({.y = device_y.data(),
              .routing = {.weights = device_weights.data(), .slot_row = device_rows.data()},
              .num_tokens = tokens,
              .num_slots = slots,
              .hidden = hidden,
              .residual = device_residual.data(),
              .out = out.data()},
             nullptr, kAfter);
  std::vector<BFloat16> expected;
  for (int64_t i = 0; i < tokens * hidden; ++i) {
    float sum = 0.0f;
    for (int64_t s = 0; s < slots; ++s) {
      const int64_t at = i / hidden * slots + s;
      sum = std::fma(weights[at], ToFloat(y[slot_row[at] * hidden + i % hidden]), sum);
    }
    expected.push_back(ToBFloat16(ToFloat(residual[i]) + ToFloat(ToBFloat16(sum))));
  }
  EXPECT_EQ(CountDifferences(out.Download(), expected), 0);
}

}  // namespace
}  // namespace quatrain::cuda
#endif
