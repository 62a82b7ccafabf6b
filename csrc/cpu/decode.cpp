// Heat-maps to points. The definition of every method is decode_reference in
// fastpose/ops/decode.py.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "decode.h"
#include "pool.h"

namespace fastpose {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kLogFloor = 1e-10;
constexpr double kUdpLow = 1e-3, kUdpHigh = 50.0;
constexpr double kUdpEpsilon = std::numeric_limits<float>::epsilon();
constexpr double kFlat = 1e-20;
constexpr int kPeakDistance = 3;

struct Point {
  double x, y;
};

// The memory behind a DecodeRoom. Not set to anything: every cell is written before it is read.
class Memory {
 public:
  explicit Memory(const DecodeJob& job) {
    const int64_t cells = int64_t{job.h} * job.w;
    // A window may be wider than a small map.
    const int64_t height = std::max(job.h, kSide);
    const int64_t stride = patch_stride(std::max(job.w, kSide), job.radius);
    const int64_t patch = (height + 2 * job.radius) * stride;
    floats_.reset(new float[3 * cells]);
    doubles_.reset(new double[patch + height * stride]);
    room_ = {floats_.get(), floats_.get() + cells, floats_.get() + 2 * cells, doubles_.get(),
             doubles_.get() + patch};
  }
  const DecodeRoom& room() const { return room_; }

 private:
  std::unique_ptr<float[]> floats_;
  std::unique_ptr<double[]> doubles_;
  DecodeRoom room_;
};

// One merged map and what its methods need.
struct Map {
  const DecodeJob& job;
  const DecodeLoops& loops;
  const DecodeRoom& room;
  const float* cells;
  double highest;

  double at(int x, int y) const { return clean(cells[int64_t{y} * job.w + x]); }
};

void blur_window(const Map& map, int x, int y, Border border, Window& window) {
  map.loops.blur(map.job, map.cells, {x - kReach, y - kReach, kSide, kSide}, border, map.room,
                 window[0]);
}

// Zeros outside: [h][whole_blocks(w)] in room.patch.
void blur_map(const Map& map) {
  map.loops.blur(map.job, map.cells, {0, 0, map.job.w, map.job.h}, Border::Zero, map.room,
                 map.room.patch);
}

// Into room.blurred: float again, so that what is level stays so whatever the order of the sums.
void round_blurred(const Map& map) {
  const int w = map.job.w;
  for (int y = 0; y < map.job.h; ++y)
    std::copy_n(map.room.patch + int64_t{y} * whole_blocks(w), w,
                map.room.blurred + int64_t{y} * w);
}

double highest_blurred(const Map& map) {
  double best = -std::numeric_limits<double>::infinity();
  for (int y = 0; y < map.job.h; ++y) {
    const double* row = map.room.patch + int64_t{y} * whole_blocks(map.job.w);
    best = std::max(best, *std::max_element(row, row + map.job.w));
  }
  return best;
}

// -Hessian^-1 gradient; no step where that is not finite or the Hessian is only rounding.
Point newton(double gx, double gy, double xx, double xy, double yy) {
  const double determinant = xx * yy - xy * xy;
  if (std::abs(determinant) < kFlat) return {0.0, 0.0};
  const Point step = {(xy * gy - yy * gx) / determinant, (xy * gx - xx * gy) / determinant};
  if (!std::isfinite(step.x) || !std::isfinite(step.y)) return {0.0, 0.0};
  return step;
}

double quarter(double before, double, double after) {
  return 0.25 * ((after > before) - (after < before));
}

double parabola(double before, double here, double after) {
  const double step = 0.5 * (before - after) / (before - 2.0 * here + after);
  return std::isfinite(step) ? step : 0.0;
}

template <class Step>
Point refine_by_axis(const Map& map, int x, int y, Step step) {
  const double here = map.at(x, y);
  Point point = {double(x), double(y)};
  if (x > 0 && x < map.job.w - 1) point.x += step(map.at(x - 1, y), here, map.at(x + 1, y));
  if (y > 0 && y < map.job.h - 1) point.y += step(map.at(x, y - 1), here, map.at(x, y + 1));
  return point;
}

// at(dx, dy) is the logarithm of the map near the peak.
template <class At>
Point taylor_step(At at) {
  const double here = at(0, 0), left = at(-1, 0), right = at(1, 0), up = at(0, -1), down = at(0, 1);
  const double xx = 0.25 * (at(2, 0) - 2.0 * here + at(-2, 0));
  const double yy = 0.25 * (at(0, 2) - 2.0 * here + at(0, -2));
  const double xy = 0.25 * (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1));
  return newton(0.5 * (right - left), 0.5 * (down - up), xx, xy, yy);
}

bool has_second_neighbours(const DecodeJob& job, int x, int y) {
  return x > 1 && x < job.w - 2 && y > 1 && y < job.h - 2;
}

Point refine_taylor(const Map& map, int x, int y) {
  if (!has_second_neighbours(map.job, x, y)) return {double(x), double(y)};
  const Point step = taylor_step([&](int dx, int dy) {
    return std::log(std::max(map.at(x + dx, y + dy) / map.job.peak_value, kLogFloor));
  });
  return {x + step.x, y + step.y};
}

// What restores the maximum that the map had before the blur. It cancels in every difference of
// logarithms unless a cell is at the floor, so it is worked out only then.
double restoring_factor(const Map& map, const Window& window) {
  double lowest = window[kReach][kReach];
  for (int dy = -kReach; dy <= kReach; ++dy)
    for (int dx = -kReach; dx <= kReach; ++dx)
      lowest = std::min(lowest, window[dy + kReach][dx + kReach]);
  if (lowest / map.job.peak_value > kLogFloor) return 1.0;
  blur_map(map);
  const double blurred = highest_blurred(map);
  return blurred > 0.0 ? map.highest / blurred : 1.0;
}

Point refine_dark(const Map& map, int x, int y) {
  if (!has_second_neighbours(map.job, x, y)) return {double(x), double(y)};
  Window window;
  blur_window(map, x, y, Border::Zero, window);
  const double scale = restoring_factor(map, window) / map.job.peak_value;
  const Point step = taylor_step([&](int dx, int dy) {
    return std::log(std::max(window[dy + kReach][dx + kReach] * scale, kLogFloor));
  });
  return {x + step.x, y + step.y};
}

Point refine_udp(const Map& map, int x, int y) {
  Window window;
  blur_window(map, x, y, Border::Mirror, window);
  const auto at = [&](int dx, int dy) {  // outside the map: the nearest cell
    dx = std::clamp(dx, -x, map.job.w - 1 - x);
    dy = std::clamp(dy, -y, map.job.h - 1 - y);
    const double value = window[dy + kReach][dx + kReach] / map.job.peak_value;
    return std::log(std::clamp(value, kUdpLow, kUdpHigh));
  };
  const double here = at(0, 0), left = at(-1, 0), right = at(1, 0), up = at(0, -1), down = at(0, 1);
  const double corners = at(1, 1) - right - down + 2.0 * here - left - up + at(-1, -1);
  const Point step =
      newton(0.5 * (right - left), 0.5 * (down - up), right - 2.0 * here + left + kUdpEpsilon,
             0.5 * corners, down - 2.0 * here + up + kUdpEpsilon);
  return {x + step.x, y + step.y};
}

Point refine_soft(const Map& map, int x, int y) {
  const Moments sums = map.loops.weigh_exponentially(map.job, map.cells, x, y, map.room);
  return {x + sums.x / sums.total, y + sums.y / sums.total};
}

// From the peak of the blurred map, room.blurred, towards its second peak.
Point refine_cpn(const Map& map, int x, int y) {
  const int w = map.job.w;
  map.room.blurred[int64_t{y} * w + x] = 0.0f;
  const Peak second = map.loops.find_peak(map.room.blurred, int64_t{map.job.h} * w);
  const double dx = second.index % w - x, dy = second.index / w - y;
  const double length = std::sqrt(dx * dx + dy * dy);
  if (length == 0.0) return {double(x), double(y)};
  return {std::clamp(x + 0.25 * dx / length, 0.0, w - 1.0),
          std::clamp(y + 0.25 * dy / length, 0.0, map.job.h - 1.0)};
}

Point refine(const Map& map, int x, int y) {
  switch (map.job.method) {
    case DecodeMethod::Quarter:
      return refine_by_axis(map, x, y, quarter);
    case DecodeMethod::Parabola:
      return refine_by_axis(map, x, y, parabola);
    case DecodeMethod::Taylor:
      return refine_taylor(map, x, y);
    case DecodeMethod::Dark:
      return refine_dark(map, x, y);
    case DecodeMethod::Udp:
      return refine_udp(map, x, y);
    case DecodeMethod::Soft:
      return refine_soft(map, x, y);
    case DecodeMethod::Cpn:
      return refine_cpn(map, x, y);
    default:
      return {double(x), double(y)};
  }
}

bool is_local_maximum(const Map& map, int x, int y) {
  const double here = map.at(x, y);
  if (here <= 0.0) return false;
  for (int row = std::max(y - 1, 0); row <= std::min(y + 1, map.job.h - 1); ++row)
    for (int column = std::max(x - 1, 0); column <= std::min(x + 1, map.job.w - 1); ++column)
      if (map.at(column, row) > here) return false;
  return true;
}

// The highest local maxima that keep their distance, as indices of cells.
void find_peaks(const Map& map, std::vector<int64_t>& kept) {
  const int h = map.job.h, w = map.job.w;
  std::vector<int64_t> candidates;
  for (int y = 0; y < h; ++y)
    for (int x = 0; x < w; ++x)
      if (is_local_maximum(map, x, y)) candidates.push_back(int64_t{y} * w + x);
  std::stable_sort(candidates.begin(), candidates.end(),
                   [&](int64_t a, int64_t b) { return map.cells[a] > map.cells[b]; });
  for (const int64_t candidate : candidates) {
    if (kept.size() == size_t(map.job.peaks)) break;
    const bool apart = std::all_of(kept.begin(), kept.end(), [&](int64_t other) {
      const int64_t dx = candidate % w - other % w, dy = candidate / w - other / w;
      return dx * dx + dy * dy >= kPeakDistance * kPeakDistance;
    });
    if (apart) kept.push_back(candidate);
  }
}

// The cells to refine in one map; none where its peak is not finite or not above 0.
void choose_cells(const Map& map, int64_t highest, std::vector<int64_t>& found) {
  found.clear();
  if (!(map.highest > 0.0) || !std::isfinite(map.highest)) return;
  if (map.job.peaks > 1) return find_peaks(map, found);
  if (map.job.method == DecodeMethod::Cpn) {
    blur_map(map);
    round_blurred(map);
    highest = map.loops.find_peak(map.room.blurred, int64_t{map.job.h} * map.job.w).index;
    if (!(clean(map.cells[highest]) > 0.0f)) return;
  }
  found.push_back(highest);
}

Point to_frame(const double* affine, Point p) {
  if (!affine) return p;
  return {affine[0] * p.x + affine[1] * p.y + affine[2],
          affine[3] * p.x + affine[4] * p.y + affine[5]};
}

void decode_map(const DecodeJob& job, const DecodeLoops& loops, const DecodeRoom& room,
                int64_t index, std::vector<int64_t>& found) {
  const float* cells = loops.merge(job, index, room);
  const Peak peak = loops.find_peak(cells, int64_t{job.h} * job.w);
  const Map map = {job, loops, room, cells, peak.value};
  choose_cells(map, peak.index, found);
  const double* affine = job.affines ? job.affines + 6 * (index / job.k) : nullptr;
  for (int i = 0; i < job.peaks; ++i) {
    Point point = {kNan, kNan};
    double score = 0.0;
    if (size_t(i) < found.size()) {
      const int x = int(found[i] % job.w), y = int(found[i] / job.w);
      point = to_frame(affine, refine(map, x, y));
      score = map.at(x, y) / job.peak_value;
    }
    float* xy = job.points + 2 * (index * job.peaks + i);
    xy[0] = static_cast<float>(point.x);
    xy[1] = static_cast<float>(point.y);
    job.scores[index * job.peaks + i] = static_cast<float>(score);
  }
}

// Measured on one core, rounded up: enough to tell a microsecond from a millisecond.
int64_t maps_per_quarter_millisecond(const DecodeJob& job) {
  const double cells = double(job.h) * job.w, taps = 2.0 * job.radius + 1.0;
  double nanoseconds = 0.1 * cells * job.stages * (job.flipped ? 2.0 : 1.0) + 50.0;
  if (job.method == DecodeMethod::Cpn) nanoseconds += 0.3 * cells * 2.0 * taps;
  if (job.method == DecodeMethod::Soft) nanoseconds += 10.0 * (taps + 2.0) * (taps + 2.0);
  if (job.method == DecodeMethod::Dark || job.method == DecodeMethod::Udp)
    nanoseconds += 2.0 * taps * taps + 300.0;
  if (job.peaks > 1) nanoseconds += 5.0 * cells;
  return std::max<int64_t>(1, int64_t(250e3 / nanoseconds));
}

}  // namespace

const DecodeLoops& decode_loops(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::Avx512) return decode_avx512;
  if (isa == Isa::Avx2) return decode_avx2;
#endif
  (void)isa;
  return decode_scalar;
}

DecodeMethod parse_decode_method(const std::string& name) {
  static const char* const names[] = {"argmax", "quarter", "parabola", "taylor",
                                      "dark",   "udp",     "soft",     "cpn"};
  for (int i = 0; i < 8; ++i)
    if (name == names[i]) return static_cast<DecodeMethod>(i);
  throw std::invalid_argument("unknown decode method " + name);
}

void decode(const DecodeJob& job, Isa isa) {
  const DecodeLoops& loops = decode_loops(isa);
  parallel_for(job.n * job.k, maps_per_quarter_millisecond(job), [&](int64_t begin, int64_t end) {
    const Memory memory(job);
    std::vector<int64_t> found;
    for (int64_t i = begin; i < end; ++i) decode_map(job, loops, memory.room(), i, found);
  });
}

}  // namespace fastpose
