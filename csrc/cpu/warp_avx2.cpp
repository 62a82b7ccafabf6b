#include <immintrin.h>

#include "warp_simd.h"

namespace fastpose {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  using Float = __m256;
  using Int = __m256i;

  static Float set(float value) { return _mm256_set1_ps(value); }
  static Int set_int(int value) { return _mm256_set1_epi32(value); }
  static Float lanes() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float floor(Float a) { return _mm256_floor_ps(a); }
  static Int to_int(Float a) { return _mm256_cvtps_epi32(a); }
  static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int mul(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  static Int madd(Int a, Int b) { return _mm256_madd_epi16(a, b); }
  static Int load_int(const uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void store_int(int32_t* to, Int a) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), a);
  }

  static Int pack_weights(Int t) {
    return _mm256_or_si256(_mm256_slli_epi32(t, 16), _mm256_sub_epi32(set_int(kWeightOne), t));
  }

  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Float a) { _mm256_storeu_ps(to, a); }
  static Float load_part(const float* from, int count) {
    return _mm256_maskload_ps(from, first(count));
  }
  static void store_part(float* to, Float a, int count) {
    _mm256_maskstore_ps(to, first(count), a);
  }

  // Of 8 tap pairs, the two bytes of each channel as a pair of 16-bit words.
  static void load_pairs(const uint8_t* base, const int32_t* offsets, Int* pairs) {
    // Pixels 0 1 | 4 5 and 2 3 | 6 7, so that one shuffle within 128-bit lanes puts them in order.
    const __m256 a = _mm256_castsi256_ps(four(base, offsets));
    const __m256 b = _mm256_castsi256_ps(four(base, offsets + 2));
    const Int low = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));   // b0 g0 r0 b1
    const Int high = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));  // g1 r1 . .
    const Int green = _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
    const Int red = _mm256_blend_epi16(high, low, 0xaa);
    pairs[0] = pick(low, 0x80038000);    // b0 g0 r0 b1
    pairs[1] = pick(green, 0x80028001);  // b0 g0 g1 r1
    pairs[2] = pick(red, 0x80018002);    // g1 r1 r0 b1
  }

 private:
  static Int first(int count) {
    return _mm256_cmpgt_epi32(set_int(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static __m128i two(const uint8_t* base, const int32_t* offsets) {
    const __m128i a = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(base + offsets[0]));
    return _mm_castps_si128(
        _mm_loadh_pi(_mm_castsi128_ps(a), reinterpret_cast<const __m64*>(base + offsets[1])));
  }

  static Int four(const uint8_t* base, const int32_t* offsets) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(two(base, offsets)),
                                   two(base, offsets + 4), 1);
  }

  // The same four byte numbers in every 32-bit word; 0x80 gives zero.
  static Int pick(Int a, uint32_t bytes) {
    const Int words = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404,
                                        0x08080808, 0x0c0c0c0c);
    return _mm256_shuffle_epi8(a, _mm256_add_epi8(words, set_int(static_cast<int>(bytes))));
  }
};

}  // namespace

const WarpRows& warp_rows_avx2() {
  static constexpr WarpRows rows{sample<Avx2>, resample<Avx2>, blend, store};
  return rows;
}

}  // namespace fastpose
