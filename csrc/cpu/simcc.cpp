// SimCC vectors to points. The definition is decode_simcc_reference in fastpose/ops/simcc.py.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "decode.h"
#include "pool.h"

namespace fastpose {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const float* row(const Bins& bins, int64_t window, int64_t joint) {
  return bins.data + window * bins.window_stride + joint * bins.joint_stride;
}

// The bins of one joint, with those of the mirrored window averaged in. `back` is read from
// back[first] leftwards, or rightwards where `step` is 1.
struct Mirrored {
  const float* back;
  int first, step;
};

Peak find_peak(const DecodeLoops& loops, const float* straight, const Mirrored& mirrored, int count,
               std::vector<float>& room) {
  if (!mirrored.back) return loops.find_peak(straight, count);
  for (int i = 0; i < count; ++i) {
    const int place = std::max(mirrored.first + mirrored.step * i, 0);
    room[i] = (straight[i] + mirrored.back[place]) * 0.5f;
  }
  return loops.find_peak(room.data(), count);
}

void decode_joint(const SimccJob& job, const DecodeLoops& loops, int64_t index,
                  std::vector<float>& room) {
  const int64_t window = index / job.k, joint = index % job.k;
  Mirrored across{nullptr, job.x.count - 1 - job.flip_shift, -1}, down{nullptr, 0, 1};
  if (job.flipped_x.data) {
    across.back = row(job.flipped_x, window, job.partner[joint]);
    down.back = row(job.flipped_y, window, job.partner[joint]);
  }
  const Peak x = find_peak(loops, row(job.x, window, joint), across, job.x.count, room);
  const Peak y = find_peak(loops, row(job.y, window, joint), down, job.y.count, room);
  float* point = job.points + 2 * index;
  const float value = std::min(x.value, y.value);
  if (!(value > 0.0f) || !std::isfinite(x.value) || !std::isfinite(y.value)) {
    point[0] = point[1] = kNan;
    job.scores[index] = 0.0f;
    return;
  }
  double u = x.index / job.split, v = y.index / job.split;
  if (job.affines) {
    const double* a = job.affines + 6 * window;
    const double left = u;
    u = a[0] * left + a[1] * v + a[2];
    v = a[3] * left + a[4] * v + a[5];
  }
  point[0] = static_cast<float>(u);
  point[1] = static_cast<float>(v);
  job.scores[index] = static_cast<float>(value / job.peak_value);
}

// Reckoned at a bin a nanosecond and 50 for each joint.
int64_t joints_per_quarter_millisecond(const SimccJob& job) {
  const int64_t bins = int64_t{job.x.count} + job.y.count;
  return std::max<int64_t>(1, 250000 / (bins + 50));
}

}  // namespace

void decode_simcc(const SimccJob& job, Isa isa) {
  const DecodeLoops& loops = decode_loops(isa);
  parallel_for(job.n * job.k, joints_per_quarter_millisecond(job), [&](int64_t begin, int64_t end) {
    std::vector<float> room(job.flipped_x.data ? std::max(job.x.count, job.y.count) : 0);
    for (int64_t i = begin; i < end; ++i) decode_joint(job, loops, i, room);
  });
}

}  // namespace fastpose
