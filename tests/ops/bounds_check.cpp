// Every kernel on arrays without a byte to spare, for the address sanitizer: exit status 0 means
// that none was read or written outside. Sizes are odd, so that vectors end in mid-row.
#include <cmath>
#include <cstring>
#include <vector>

#include "fastpose.h"
#include "isa.h"

namespace {

using namespace fastpose;

constexpr float kTurns[] = {0.0f, 0.4f};  // radians; upright windows take a path of their own
constexpr float kScales[] = {0.3f, 1.0f, 2.7f};

std::vector<float> affine_of(float turn, float scale, float x, float y) {
  const float c = scale * std::cos(turn), s = scale * std::sin(turn);
  return {c, -s, x, s, c, y};
}

// Calls run(windows, out) for windows inside, across and outside a source of that size.
template <class Run>
void for_windows(int height, int width, int channels, const Run& run) {
  const std::vector<float> scale(channels, 1.0f), shift(channels, 0.0f);
  for (const Real type : {Real::F32, Real::F16, Real::Bf16})
    for (const int area : {1, 2})
      for (const int side : {1, 7, 19, 33})
        for (const float turn : kTurns)
          for (const float zoom : kScales)
            for (const float x : {-0.4f * width, 0.0f, 0.7f * width}) {
              const std::vector<float> affine = affine_of(turn, zoom, x, 0.2f * height);
              const Windows windows{affine.data(), nullptr, nullptr, 1, side + 2, side, area, 5.0f};
              const int bytes = type == Real::F32 ? 4 : 2;
              std::vector<char> data(size_t(bytes) * channels * (side + 2) * side);
              run(windows, WarpOutput{data.data(), scale.data(), shift.data(), channels, type,
                                      false, false});
              run(windows,
                  WarpOutput{data.data(), scale.data(), shift.data(), channels, type, true, false});
            }
}

void warp_all(Isa isa) {
  for (const int height : {1, 2, 23})
    for (const int width : {1, 3, 5, 41}) {
      const std::vector<uint8_t> frame(size_t(height) * width * 3, 7);
      const ByteFrames frames{frame.data(), 0, 3 * width, height, width, 1, nullptr};
      for_windows(height, width, 3, [&](const Windows& windows, const WarpOutput& out) {
        warp_bytes(frames, windows, out, isa, false);
        if (has_vbmi()) warp_bytes(frames, windows, out, isa, true);
      });
      const std::vector<float> map(size_t(height) * width * 2, 7.0f);
      const FloatMaps maps{map.data(), 0, int64_t{height} * width, width, height, width};
      for_windows(height, width, 2, [&](const Windows& windows, const WarpOutput& out) {
        warp_maps(maps, windows, out, isa);
      });
    }
}

// Frames of different sizes, one of them upside down and one that there is not, under windows with
// areas of their own.
void warp_tables(Isa isa) {
  const std::vector<uint8_t> small(size_t(5) * 7 * 3, 7), large(size_t(23) * 41 * 3, 7);
  const auto address = [](const uint8_t* pixel) { return reinterpret_cast<intptr_t>(pixel); };
  const FrameRow rows[] = {{address(small.data()), 7 * 3, 5, 7},
                           {address(large.data() + 22 * 41 * 3), -41 * 3, 23, 41},
                           {0, 0, 0, 0}};
  ByteFrames frames{};
  frames.count = 3;
  frames.table = rows;
  const int32_t source[] = {0, 1, 2, 3, -1, 1}, areas[] = {1, 3, 2, 1, 2, 1};
  const float scale[] = {1, 1, 1}, shift[] = {0, 0, 0};
  const int height = 9, width = 19;
  for (const float turn : kTurns)
    for (const float zoom : kScales) {
      std::vector<float> affines;
      for (int i = 0; i < 6; ++i) {
        const std::vector<float> affine = affine_of(turn, zoom, -1.5f, 0.25f);
        affines.insert(affines.end(), affine.begin(), affine.end());
      }
      std::vector<float> data(size_t(6) * 3 * height * width);
      const Windows windows{affines.data(), source, areas, 6, height, width, 1, 5.0f};
      const WarpOutput out{data.data(), scale, shift, 3, Real::F32, false, false};
      warp_bytes(frames, windows, out, isa, false);
      if (has_vbmi()) warp_bytes(frames, windows, out, isa, true);
    }
}

// One peak in every cell in turn.
void decode_all(Isa isa) {
  const int32_t partner[] = {0};
  for (const int radius : {1, 5, 10})
    for (const int height : {1, 2, 9})
      for (const int width : {1, 5, 17})
        for (int method = 0; method <= int(DecodeMethod::Cpn); ++method)
          for (int peak = 0; peak < height * width; ++peak) {
            std::vector<float> map(size_t(height) * width, 0.1f), flipped = map;
            map[peak] = flipped[peak] = 1.0f;
            const std::vector<double> taps(2 * radius + 1, 1.0 / (2 * radius + 1));
            float points[4], scores[2];
            DecodeJob job{};
            job.maps = map.data();
            job.flipped = flipped.data();
            job.partner = partner;
            job.stages = job.n = job.k = 1;
            job.h = height;
            job.w = width;
            job.flip_shift = 1;
            job.method = static_cast<DecodeMethod>(method);
            job.taps = taps.data();
            job.radius = radius;
            job.peaks = job.method == DecodeMethod::Cpn ? 1 : 2;
            job.peak_value = 1.0;
            job.points = points;
            job.scores = scores;
            decode(job, isa);
          }
}

// One peak in every bin in turn, with and without a mirrored input.
void decode_simcc_all(Isa isa) {
  const int32_t partner[] = {0};
  for (const int across : {1, 5, 33})
    for (const int down : {1, 70})
      for (const int shift : {0, 1, 8})
        for (int peak = 0; peak < across; ++peak) {
          std::vector<float> x(across, 0.1f), y(down, 0.1f);
          x[peak] = y[peak % down] = 1.0f;
          float points[2], scores[1];
          SimccJob job{};
          job.x = {x.data(), across, across, across};
          job.y = {y.data(), down, down, down};
          job.partner = partner;
          job.n = job.k = 1;
          job.split = job.peak_value = 1.0;
          job.flip_shift = shift;
          job.points = points;
          job.scores = scores;
          decode_simcc(job, isa);
          job.flipped_x = job.x;
          job.flipped_y = job.y;
          decode_simcc(job, isa);
        }
}

// Springs that rest inside, at the border and far outside, for one part and for three in a fork.
void fit_tree_all() {
  const int64_t parents[] = {-1, 0, 0}, order[] = {0, 1, 2};
  for (const int parts : {1, 3})
    for (const int types : {1, 2})
      for (const int height : {1, 2, 9})
        for (const int width : {1, 5, 17})
          for (const int64_t anchor : {-99, -1, 0, 4, 99}) {
            std::vector<float> scores(size_t(2) * parts * types * height * width);
            for (size_t i = 0; i < scores.size(); ++i) scores[i] = float(i * 7 % 11);
            const std::vector<int64_t> anchors(size_t(2) * parts * types, anchor);
            std::vector<float> points(size_t(2) * parts * 2);
            std::vector<int64_t> chosen(size_t(2) * parts);
            double total[2];
            for (const double weight : {1e-310, 0.1})
              fit_tree({scores.data(), 2, parts, types, height, width, parents, order,
                        anchors.data(), weight, points.data(), chosen.data(), total});
          }
}

}  // namespace

int main() {
  fit_tree_all();
  for (const Isa isa : {Isa::Scalar, Isa::Avx2, Isa::Avx512}) {
    if (isa > best_isa()) continue;
    warp_all(isa);
    warp_tables(isa);
    decode_all(isa);
    decode_simcc_all(isa);
  }
}
