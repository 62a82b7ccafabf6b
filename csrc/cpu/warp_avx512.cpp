#include <immintrin.h>

#include "warp_simd.h"

namespace fastpose {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  using Float = __m512;
  using Int = __m512i;

  static Float set(float value) { return _mm512_set1_ps(value); }
  static Int set_int(int value) { return _mm512_set1_epi32(value); }
  static Float lanes() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float floor(Float a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  static Int to_int(Float a) { return _mm512_cvtps_epi32(a); }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int mul(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  static Int madd(Int a, Int b) { return _mm512_madd_epi16(a, b); }
  static Int load_int(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static void store_int(int32_t* to, Int a) { _mm512_store_si512(to, a); }

  static Int pack_weights(Int t) {
    return _mm512_or_si512(_mm512_slli_epi32(t, 16), _mm512_sub_epi32(set_int(kWeightOne), t));
  }

  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Float a) { _mm512_storeu_ps(to, a); }
  static Float load_part(const float* from, int count) {
    return _mm512_maskz_loadu_ps(first(count), from);
  }
  static void store_part(float* to, Float a, int count) {
    _mm512_mask_storeu_ps(to, first(count), a);
  }

  // Of 16 tap pairs, the two bytes of each channel as a pair of 16-bit words.
  static void load_pairs(const uint8_t* base, const int32_t* offsets, Int* pairs) {
    // Pixels 0 1 | 4 5 | 8 9 | 12 13 and 2 3 | 6 7 | 10 11 | 14 15, so that one shuffle within
    // 128-bit lanes puts their halves in order.
    const __m512 a = _mm512_castsi512_ps(eight(base, offsets));
    const __m512 b = _mm512_castsi512_ps(eight(base, offsets + 2));
    const Int low = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88));   // b0 g0 r0 b1
    const Int high = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd));  // g1 r1 . .
    const Int green = _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16));
    const Int red = _mm512_mask_blend_epi16(0xaaaaaaaau, high, low);
    pairs[0] = pick(low, 0x80038000);    // b0 g0 r0 b1
    pairs[1] = pick(green, 0x80028001);  // b0 g0 g1 r1
    pairs[2] = pick(red, 0x80018002);    // g1 r1 r0 b1
  }

 private:
  static __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }

  static __m128i two(const uint8_t* base, const int32_t* offsets) {
    const __m128i a = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(base + offsets[0]));
    return _mm_castps_si128(
        _mm_loadh_pi(_mm_castsi128_ps(a), reinterpret_cast<const __m64*>(base + offsets[1])));
  }

  static __m256i four(const uint8_t* base, const int32_t* offsets) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(two(base, offsets)),
                                   two(base, offsets + 4), 1);
  }

  static Int eight(const uint8_t* base, const int32_t* offsets) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(four(base, offsets)), four(base, offsets + 8),
                              1);
  }

  // The same four byte numbers in every 32-bit word; 0x80 gives zero.
  static Int pick(Int a, uint32_t bytes) {
    const Int words = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    return _mm512_shuffle_epi8(a, _mm512_add_epi8(words, set_int(static_cast<int>(bytes))));
  }
};

}  // namespace

const WarpRows& warp_rows_avx512() {
  static constexpr WarpRows rows{sample<Avx512>, resample<Avx512>, blend, store};
  return rows;
}

}  // namespace fastpose
