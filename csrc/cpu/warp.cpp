// Windows of byte frames or float maps -> a normalised batch. A window whose rows and columns are
// those of the source (no rotation, no shear) is separable: every source row is resampled along x
// once and kept for the next output row; with VBMI, source rows go to an output row in registers
// (warp_lookup.h). Any other window samples pixel by pixel.
#include <algorithm>
#include <cmath>
#include <vector>

#include "affine.h"
#include "fastpose.h"
#include "pool.h"
#include "warp_lookup.h"
#include "warp_rows.h"
#include "warp_store.h"

namespace fastpose {
namespace {

constexpr int kMaxLanes = 16;
constexpr double kMargin = 1.0 / 64;     // px; covers the vector loops' float32 positions ...
constexpr int kMaxVectorSize = 1 << 16;  // ... in frames up to this width and height
constexpr int kTail = 2;  // a tap pair is read as eight bytes, two more than it has: one pixel less
constexpr double kPieceTime = 250e3;     // ns, of one piece of parallel work
constexpr double kRowsAhead = 4;         // from 3 to 8 output rows it makes no difference
constexpr double kByteSampleTime = 0.5;  // ns, three channels
constexpr double kMapSampleTime = 4;     // ns, one channel

// --- the scalar twin of the vector loops -------------------------------------------------------

void put(float* to, float value, bool add) { *to = add ? *to + value : value; }

void sample_scalar(const uint8_t* frame, int64_t row_stride, const Walk& walk, int begin, int end,
                   bool add, float* planes, int pitch) {
  for (int u = begin; u < end; ++u) {
    const double x = walk.x + walk.dx * u, y = walk.y + walk.dy * u;
    const double left = std::floor(x), top = std::floor(y);
    const float fx = static_cast<float>(x - left), fy = static_cast<float>(y - top);
    const uint8_t* above =
        frame + static_cast<int64_t>(top) * row_stride + static_cast<int64_t>(left) * kBytes;
    const uint8_t* below = above + row_stride;
    for (int c = 0; c < kBytes; ++c) {
      const float upper = lerp(above[c], above[c + kBytes], fx);
      const float lower = lerp(below[c], below[c + kBytes], fx);
      put(planes + c * pitch + u, lerp(upper, lower, fy), add);
    }
  }
}

void resample_scalar(const uint8_t* row, const int32_t* offsets, const uint32_t* weights, int begin,
                     int end, bool add, float* planes, int pitch) {
  for (int u = begin; u < end; ++u) {
    const uint8_t* tap = row + offsets[u];
    const float t = static_cast<float>(weights[u] >> 16) / kWeightOne;
    for (int c = 0; c < kBytes; ++c)
      put(planes + c * pitch + u, lerp(tap[c], tap[c + kBytes], t), add);
  }
}

const WarpRows& rows_of(Isa isa) {
  static constexpr WarpRows scalar{sample_scalar, resample_scalar, blend, store};
#if defined(__x86_64__)
  if (isa == Isa::Avx512) return warp_rows_avx512();
  if (isa == Isa::Avx2) return warp_rows_avx2();
#endif
  (void)isa;
  return scalar;
}

ChoosePermute permute_of(bool vbmi) {
#if defined(__x86_64__)
  if (vbmi) return permute_avx512vbmi();
#endif
  (void)vbmi;
  return nullptr;
}

// --- output ------------------------------------------------------------------------------------

// Normalises and writes a row of one channel, the sum of area * area samples for every pixel.
void store_row(const WarpRows& rows, const Windows& windows, const WarpOutput& out, int64_t window,
               int channel, int v, int area, const Blend& sums) {
  const int64_t channels = out.channels, w = windows.width;
  const int64_t row = window * windows.height + v;
  const int64_t at = out.channels_last ? row * w * channels + channel
                                       : ((window * channels + channel) * windows.height + v) * w;
  const int size = out.type == Real::F32 ? 4 : 2;
  const float samples = static_cast<float>(area * area);
  rows.store(sums, out.scale[channel] / samples, out.shift[channel], windows.width, out.type,
             static_cast<char*>(out.data) + at * size, out.channels_last ? channels : 1);
}

// --- spans -------------------------------------------------------------------------------------

struct Span {
  int begin, end;  // empty if begin >= end
};

Span intersect(Span a, Span b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

// `part` cut to `all`; if nothing is left, the empty span at the end of `all`.
Span part_of(Span all, Span part) {
  const Span both = intersect(all, part);
  return both.begin < both.end ? both : Span{all.end, all.end};
}

// The u in [0, n) for which start + step * u lies in [low, high], to within rounding.
Span inside(double start, double step, double low, double high, int n) {
  if (low > high) return {0, 0};
  if (step == 0) return start >= low && start <= high ? Span{0, n} : Span{0, 0};
  const double a = (low - start) / step, b = (high - start) / step;
  const double size = n;
  return {static_cast<int>(std::ceil(std::clamp(std::min(a, b), 0.0, size))),
          static_cast<int>(std::floor(std::clamp(std::max(a, b), -1.0, size - 1))) + 1};
}

// --- byte frames -------------------------------------------------------------------------------

struct Image {
  const uint8_t* data;
  int64_t row_stride;
  int height, width;
  float border;

  bool fits_vectors() const {
    return std::max(height, width) <= kMaxVectorSize && std::abs(row_stride) * height < INT32_MAX;
  }
};

// One thread's working memory and the rows of one window after another.
class ByteWarper {
 public:
  ByteWarper(const ByteFrames& frames, const Windows& windows, const WarpOutput& out, Isa isa,
             bool vbmi)
      : frames_(frames),
        windows_(windows),
        out_(out),
        rows_(rows_of(isa)),
        choose_permute_(permute_of(vbmi)),
        pitch_((windows.width + kMaxLanes - 1) / kMaxLanes * kMaxLanes),
        planes_(kBytes * pitch_),
        border_(kBytes * pitch_),
        kept_{std::vector<float>(kBytes * pitch_), std::vector<float>(kBytes * pitch_)} {}

  void run(int64_t window, int begin, int end) {
    const Affine affine = Affine::load(windows_.affines + 6 * window);
    area_ = windows_.area_of(window);
    image_ = image_of(windows_.source_of(window));
    const bool separable = affine.finite() && affine.axis_aligned();
    if (separable && choose_permute_ && image_.data &&
        lookup_.find(affine, windows_.width, area_, image_.width, image_.border)) {
      permute_ = choose_permute_(lookup_, out_.channels_last ? Real::F32 : out_.type);
      find_planes(window);
      // Rows are asked for early: they are too short for the processor to foresee the next.
      const double rows =
          std::clamp(kRowsAhead * affine.yv, -1.0 * image_.height, 1.0 * image_.height);
      sum_.ahead = std::lround(rows) * image_.row_stride;
      for (int v = begin; v < end; ++v) permute_row(affine, window, v);
      return;
    }
    if (separable) find_columns(affine);
    for (int v = begin; v < end; ++v) {
      if (separable)
        store(window, v, blended_row(affine, v));
      else
        store(window, v, sampled_row(affine, v));
    }
  }

 private:
  // Along x, for one of the `area` samples of every output pixel.
  struct Columns {
    std::vector<double> x;
    std::vector<int32_t> offsets;   // both only within `interior`; `weights` has a vector more
    std::vector<uint32_t> weights;  // than a row, since vectors begin and end anywhere in it
    Span touching, interior;
  };

  // A frame that there is not has no pixels: every tap lies outside it.
  Image image_of(int64_t frame) const {
    const float border = windows_.border;
    const Image nothing{nullptr, 0, 0, 0, border};
    if (frame < 0 || frame >= frames_.count) return nothing;
    if (!frames_.table)
      return {frames_.data + frame * frames_.frame_stride, frames_.row_stride, frames_.height,
              frames_.width, border};
    const FrameRow& row = frames_.table[frame];
    if (row.height < 1 || row.width < 1) return nothing;
    return {reinterpret_cast<const uint8_t*>(row.address), row.row_stride,
            static_cast<int>(row.height), static_cast<int>(row.width), border};
  }

  void find_columns(const Affine& affine) {
    const int n = windows_.width;
    columns_.resize(area_);
    for (int i = 0; i < area_; ++i) {
      Columns& columns = columns_[i];
      columns.x.resize(n);
      columns.offsets.assign(n, 0);
      columns.weights.assign(n + kMaxLanes, 0);
      const double start = affine.x(subpixel(i, area_), 0);
      columns.touching = part_of({0, n}, inside(start, affine.xu, -1, image_.width, n));
      columns.interior = part_of(columns.touching, vector_span(start, affine.xu));
      for (int u = columns.touching.begin; u < columns.touching.end; ++u)
        columns.x[u] = start + affine.xu * u;
      for (int u = columns.interior.begin; u < columns.interior.end; ++u) {
        const double left = std::floor(columns.x[u]);
        const auto t = static_cast<uint32_t>(std::lround((columns.x[u] - left) * kWeightOne));
        columns.offsets[u] = static_cast<int32_t>(left) * kBytes;
        columns.weights[u] = t << 16 | (kWeightOne - t);
      }
    }
    for (int slot = 0; slot < 2; ++slot) kept_row_[slot] = -1;
    std::fill(border_.begin(), border_.end(), image_.border * area_);
  }

  // Where x keeps the promise that warp_rows.h makes to the vector loops.
  Span vector_span(double x, double dx) const {
    if (!image_.fits_vectors()) return {0, 0};
    return inside(x, dx, kMargin, image_.width - kTail - kMargin, windows_.width);
  }

  // A row of a separable window. With one sample a pixel the blend is left to the store.
  Blend blended_row(const Affine& affine, int v) {
    for (int j = 0; j < area_; ++j) {
      Between y;
      if (!find_between(affine.y(0, v + subpixel(j, area_)), image_.height, &y)) y = {-2, 0};
      const Blend rows{resampled(y.low), resampled(y.low + 1), 1 - y.fraction, y.fraction};
      if (area_ == 1) return rows;
      rows_.blend(rows, kBytes * pitch_, j > 0, planes_.data());
    }
    return {planes_.data(), nullptr, 1, 0};
  }

  // Source row y along x. Rows y and y + 1 are needed together, so two are kept, by parity.
  const float* resampled(int y) {
    if (y < 0 || y >= image_.height) return border_.data();
    float* kept = kept_[y & 1].data();
    if (kept_row_[y & 1] == y) return kept;
    kept_row_[y & 1] = y;
    const uint8_t* row = image_.data + y * image_.row_stride;
    for (const Columns& columns : columns_) {
      const Span all = columns.touching, fast = columns.interior;
      const bool add = &columns != &columns_.front();
      put_border(0, all.begin, add, kept);
      put_taps(row, columns.x.data(), all.begin, fast.begin, add, kept);
      rows_.resample(row, columns.offsets.data(), columns.weights.data(), fast.begin, fast.end, add,
                     kept, pitch_);
      put_taps(row, columns.x.data(), fast.end, all.end, add, kept);
      put_border(all.end, windows_.width, add, kept);
    }
    return kept;
  }

  void put_taps(const uint8_t* row, const double* x, int begin, int end, bool add,
                float* planes) const {
    for (int u = begin; u < end; ++u) {
      Between between{-2, 0};  // both taps outside, where rounding brought x in here
      find_between(x[u], image_.width, &between);
      for (int c = 0; c < kBytes; ++c) {
        const auto tap = [&](int at) {
          return at >= 0 && at < image_.width ? row[at * kBytes + c] : image_.border;
        };
        put(planes + c * pitch_ + u, lerp(tap(between.low), tap(between.low + 1), between.fraction),
            add);
      }
    }
  }

  void put_border(int begin, int end, bool add, float* planes) const {
    for (int c = 0; c < kBytes; ++c)
      for (int u = begin; u < end; ++u) put(planes + c * pitch_ + u, image_.border, add);
  }

  // Where the rows of a window go whose columns are in `lookup_`: to the output or, if channels are
  // interleaved there, to `planes_`.
  void find_planes(int64_t window) {
    const int64_t row = windows_.width * (out_.type == Real::F32 ? 4 : 2);
    sum_.terms.resize(2 * area_);
    output_.row_bytes = out_.channels_last ? 0 : row;
    for (int c = 0; c < kBytes; ++c) {
      const int from = out_.swap_rb ? kBytes - 1 - c : c;
      if (out_.channels_last) {
        output_.to[c] = reinterpret_cast<char*>(&planes_[c * pitch_]);
        output_.scale[c] = 1.0f / kWeightOne;
        output_.shift[c] = 0;
      } else {
        output_.to[from] =
            static_cast<char*>(out_.data) + (window * kBytes + c) * windows_.height * row;
        output_.scale[from] = out_.scale[c] / static_cast<float>(area_ * area_ * kWeightOne);
        output_.shift[from] = out_.shift[c];
      }
    }
  }

  // A row of such a window, from the source rows to the output.
  void permute_row(const Affine& affine, int64_t window, int v) {
    sum_.count = 0;
    sum_.inside = sum_.outside = 0;
    for (int j = 0; j < area_; ++j) {
      Between y{-2, 0};  // both taps outside
      find_between(affine.y(0, v + subpixel(j, area_)), image_.height, &y);
      add_term(y.low, 1 - y.fraction);
      add_term(y.low + 1, y.fraction);
    }
    permute_(lookup_, sum_, output_, v);
    if (out_.channels_last) store(window, v, {planes_.data(), nullptr, 1, 0});
  }

  // Adds a share of source row y.
  void add_term(int y, float weight) {
    if (weight == 0) return;
    if (y < 0 || y >= image_.height) {
      sum_.outside += weight * static_cast<float>(area_ * kWeightOne) * image_.border;
      return;
    }
    sum_.inside += weight;
    const uint8_t* row = image_.data + y * image_.row_stride;
    int i = 0;
    while (i < sum_.count && sum_.terms[i].row != row) ++i;
    if (i == sum_.count) sum_.terms[sum_.count++] = {row, 0};
    sum_.terms[i].weight += weight;
  }

  // A row of any window: border, edge, interior, edge, border, once for every sample.
  Blend sampled_row(const Affine& affine, int v) {
    const int n = windows_.width, area = area_;
    float* planes = planes_.data();
    for (int sample = 0; sample < area * area; ++sample) {
      const double column = subpixel(sample % area, area), row = v + subpixel(sample / area, area);
      const Walk walk{affine.x(column, row), affine.xu, affine.y(column, row), affine.yu};
      const bool add = sample > 0;
      Span all{n, n}, fast{n, n};
      if (affine.finite()) {
        all = part_of({0, n}, intersect(inside(walk.x, walk.dx, -1, image_.width, n),
                                        inside(walk.y, walk.dy, -1, image_.height, n)));
        fast = part_of(all,
                       intersect(vector_span(walk.x, walk.dx),
                                 inside(walk.y, walk.dy, kMargin, image_.height - 1 - kMargin, n)));
      }
      put_border(0, all.begin, add, planes);
      put_samples(walk, all.begin, fast.begin, add, planes);
      rows_.sample(image_.data, image_.row_stride, walk, fast.begin, fast.end, add, planes, pitch_);
      put_samples(walk, fast.end, all.end, add, planes);
      put_border(all.end, n, add, planes);
    }
    return {planes, nullptr, 1, 0};
  }

  void put_samples(const Walk& walk, int begin, int end, bool add, float* planes) const {
    const Pixel border{image_.border, image_.border, image_.border};
    const auto load = [&](int column, int row) {
      const uint8_t* pixel = image_.data + row * image_.row_stride + column * kBytes;
      return Pixel{float(pixel[0]), float(pixel[1]), float(pixel[2])};
    };
    for (int u = begin; u < end; ++u) {
      Between x, y;
      Pixel value = border;
      if (find_between(walk.x + walk.dx * u, image_.width, &x) &&
          find_between(walk.y + walk.dy * u, image_.height, &y))
        value = bilinear(x, y, image_.width, image_.height, border, load);
      put(planes + u, value.c0, add);
      put(planes + pitch_ + u, value.c1, add);
      put(planes + 2 * pitch_ + u, value.c2, add);
    }
  }

  void store(int64_t window, int v, const Blend& row) {
    for (int c = 0; c < kBytes; ++c) {
      const int from = (out_.swap_rb ? kBytes - 1 - c : c) * pitch_;
      const Blend channel{row.above + from, row.below ? row.below + from : nullptr, row.a, row.b};
      store_row(rows_, windows_, out_, window, c, v, area_, channel);
    }
  }

  const ByteFrames& frames_;
  const Windows& windows_;
  const WarpOutput& out_;
  const WarpRows& rows_;
  const ChoosePermute choose_permute_;  // or null
  const int pitch_;
  std::vector<float> planes_, border_, kept_[2];
  std::vector<Columns> columns_;
  Lookup lookup_;
  PermuteRow* permute_ = nullptr;
  Planes output_{};
  RowSum sum_;
  Image image_{};
  int area_ = 1;
  int kept_row_[2] = {-1, -1};
};

// --- float maps --------------------------------------------------------------------------------

// A row of a window is a sparse matrix, the same for every channel: it is built once and applied to
// each. A tap of weight zero is left out, so that it cannot spread an infinity or NaN.
class MapWarper {
 public:
  MapWarper(const FloatMaps& maps, const Windows& windows, const WarpOutput& out, Isa isa)
      : maps_(maps), windows_(windows), out_(out), rows_(rows_of(isa)), values_(windows.width) {}

  void run(int64_t window, int begin, int end) {
    const Affine affine = Affine::load(windows_.affines + 6 * window);
    const int area = windows_.area_of(window);
    const float* map = maps_.data + windows_.source_of(window) * maps_.map_stride;
    for (int v = begin; v < end; ++v) {
      find_taps(affine, v, area);
      for (int c = 0; c < out_.channels; ++c) {
        const int from = out_.swap_rb ? out_.channels - 1 - c : c;
        apply(map + from * maps_.channel_stride);
        store_row(rows_, windows_, out_, window, c, v, area, {values_.data(), nullptr, 1, 0});
      }
    }
  }

 private:
  struct Tap {
    int64_t offset;
    float weight;
  };

  void find_taps(const Affine& affine, int v, int area) {
    taps_.clear();
    ends_.clear();
    outside_.clear();
    const bool finite = affine.finite();
    for (int u = 0; u < windows_.width; ++u) {
      float outside = 0;
      for (int sample = 0; sample < area * area; ++sample) {
        const double column = u + subpixel(sample % area, area);
        const double row = v + subpixel(sample / area, area);
        Between x, y;
        if (finite && find_between(affine.x(column, row), maps_.width, &x) &&
            find_between(affine.y(column, row), maps_.height, &y))
          outside += add_cell(x, y);
        else
          outside += 1;
      }
      ends_.push_back(taps_.size());
      outside_.push_back(outside);
    }
  }

  // Adds the four taps of one sample; returns the weight of those that lie outside.
  float add_cell(const Between& x, const Between& y) {
    float outside = 0;
    for (int corner = 0; corner < 4; ++corner) {
      const int right = corner & 1, below = corner >> 1;
      const int column = x.low + right, row = y.low + below;
      const float weight =
          (right ? x.fraction : 1 - x.fraction) * (below ? y.fraction : 1 - y.fraction);
      if (weight == 0) continue;
      if (column < 0 || column >= maps_.width || row < 0 || row >= maps_.height)
        outside += weight;
      else
        taps_.push_back({row * maps_.row_stride + column, weight});
    }
    return outside;
  }

  void apply(const float* channel) {
    size_t tap = 0;
    for (int u = 0; u < windows_.width; ++u) {
      float sum = outside_[u] == 0 ? 0 : outside_[u] * windows_.border;
      for (; tap < ends_[u]; ++tap) sum += taps_[tap].weight * channel[taps_[tap].offset];
      values_[u] = sum;
    }
  }

  const FloatMaps& maps_;
  const Windows& windows_;
  const WarpOutput& out_;
  const WarpRows& rows_;
  std::vector<Tap> taps_;
  std::vector<size_t> ends_;    // of every output pixel's taps
  std::vector<float> outside_;  // weight of its taps outside the map
  std::vector<float> values_;
};

// All rows of all windows, in pieces, each with a warper of its own; `row_time` is the cost of one
// row in nanoseconds.
template <class MakeWarper>
void warp_all(const Windows& windows, double row_time, const MakeWarper& make_warper) {
  const int64_t height = windows.height;
  const auto grain = static_cast<int64_t>(std::max(1.0, kPieceTime / std::max(row_time, 1.0)));
  parallel_for(windows.count * height, grain, [&](int64_t begin, int64_t end) {
    auto warper = make_warper();
    while (begin < end) {
      const int64_t first = begin % height, rows = std::min(height - first, end - begin);
      warper.run(begin / height, static_cast<int>(first), static_cast<int>(first + rows));
      begin += rows;
    }
  });
}

// Of an average window.
double samples_in_row(const Windows& windows) {
  double samples = 0;
  for (int64_t i = 0; i < windows.count; ++i) samples += std::pow(windows.area_of(i), 2);
  return windows.width * samples / static_cast<double>(windows.count);
}

}  // namespace

void warp_bytes(const ByteFrames& frames, const Windows& windows, const WarpOutput& out, Isa isa,
                bool vbmi) {
  warp_all(windows, samples_in_row(windows) * kByteSampleTime,
           [&] { return ByteWarper(frames, windows, out, isa, vbmi); });
}

void warp_maps(const FloatMaps& maps, const Windows& windows, const WarpOutput& out, Isa isa) {
  warp_all(windows, samples_in_row(windows) * out.channels * kMapSampleTime,
           [&] { return MapWarper(maps, windows, out, isa); });
}

}  // namespace fastpose
