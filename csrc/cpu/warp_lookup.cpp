#include "warp_lookup.h"

#include <algorithm>
#include <limits>

namespace fastpose {
namespace {

constexpr int kPair = 2 * kBytes;  // bytes from the left tap to the end of the right one
constexpr int kQuarter = Lookup::kLanes / 4;

uint64_t first_bytes(int count) {
  if (count <= 0) return 0;
  return count >= Lookup::kVector ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

}  // namespace

bool Lookup::find(const Affine& affine, int columns, int samples, int source_width, float outside) {
  width = columns;
  area = samples;
  blocks = (width + kLanes - 1) / kLanes;
  find_taps(affine, source_width, outside);
  if (!choose_parts()) return false;
  find_indices(source_width);
  return true;
}

void Lookup::find_taps(const Affine& affine, int source_width, float outside) {
  offsets_.resize(blocks * area * kLanes);
  weights.resize(blocks * area * kLanes);
  border.assign(blocks * kLanes, 0.0f);
  bool any_outside = false;
  for (int i = 0; i < area; ++i) {
    const double start = affine.x(subpixel(i, area), 0);
    for (int u = 0; u < blocks * kLanes; ++u) {
      const int at = (u / kLanes * area + i) * kLanes + u % kLanes;
      const double x = std::clamp(start + affine.xu * u, -1.0, double(source_width));
      const int left = static_cast<int>(x + 1) - 1;
      const auto t = static_cast<uint32_t>((x - left) * kWeightOne + 0.5);
      uint32_t low = kWeightOne - t, high = t;
      int first = left;
      if (left < 0 || left > source_width - 2) {
        // The pair is moved inside, and what it weighs outside goes to the border.
        first = left < 0 ? 0 : std::max(0, source_width - 2);
        const auto weight_at = [&](int pixel) {
          return pixel >= source_width ? 0 : pixel == left ? low : pixel == left + 1 ? high : 0;
        };
        const uint32_t inner[] = {weight_at(first), weight_at(first + 1)};
        low = inner[0], high = inner[1];
        if (low + high < kWeightOne) {
          border[u] += (kWeightOne - low - high) * outside;
          any_outside = true;
        }
      }
      offsets_[at] = first * kBytes;
      weights[at] = high << 16 | low;
    }
  }
  if (!any_outside) border.clear();
}

bool Lookup::choose_parts() {
  // The widest reach of runs of 4, 8 and 16 neighbours.
  int reach[3] = {};
  for (int block = 0; block < blocks; ++block) {
    int low[4], high[4];
    for (int quarter = 0; quarter < 4; ++quarter) {
      low[quarter] = std::numeric_limits<int>::max(), high[quarter] = 0;
      for (int i = 0; i < area; ++i) {
        const int32_t* run = &offsets_[(block * area + i) * kLanes + quarter * kQuarter];
        // x rises or falls all along
        low[quarter] = std::min({low[quarter], run[0], run[kQuarter - 1]});
        high[quarter] = std::max({high[quarter], run[0], run[kQuarter - 1]});
      }
    }
    for (int doubling = 0, size = 1; doubling < 3; ++doubling, size *= 2)
      for (int first = 0; first < 4; first += size)
        reach[doubling] =
            std::max(reach[doubling], *std::max_element(high + first, high + first + size) -
                                          *std::min_element(low + first, low + first + size));
  }
  loads = reach[2] + kPair <= kVector ? 1 : 2;
  for (parts = 1; parts <= 4; parts *= 2)
    if (reach[parts == 1 ? 2 : parts == 2 ? 1 : 0] + kPair <= loads * kVector) return true;
  return false;
}

void Lookup::find_indices(int source_width) {
  const int lanes = kLanes / parts, row_bytes = source_width * kBytes;
  bases.resize(blocks * parts);
  masks.resize(blocks * parts * loads);
  indices.resize(offsets_.size());
  for (int block = 0; block < blocks; ++block)
    for (int part = 0; part < parts; ++part) {
      const int run = block * parts + part;
      const int32_t* first = &offsets_[block * area * kLanes + part * lanes];
      int low = std::numeric_limits<int>::max(), high = 0;
      for (int i = 0; i < area; ++i) {
        const int32_t* taps = first + i * kLanes;
        low = std::min({low, taps[0], taps[lanes - 1]});
        high = std::max({high, taps[0], taps[lanes - 1]});
      }
      bases[run] = low;
      const int bytes = std::min(high + kPair, row_bytes) - low;
      for (int load = 0; load < loads; ++load)
        masks[run * loads + load] = first_bytes(bytes - load * kVector);
      for (int i = 0; i < area; ++i)
        for (int lane = 0; lane < lanes; ++lane) {
          const auto tap = static_cast<uint32_t>(first[i * kLanes + lane] - low);
          indices[first - offsets_.data() + i * kLanes + lane] = (tap + kBytes) << 16 | tap;
        }
    }
}

}  // namespace fastpose
