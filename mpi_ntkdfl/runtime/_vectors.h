/* What C files share that are built once per level of x86-64: vectors as wide as the processor's, fused
 * operations, and which level the processor runs. `builds.py` loads the builds.
 *
 * REAL_DOUBLE makes double the type of the numbers; else it is float. */

#ifndef VECTORS_H
#define VECTORS_H

#include <stdint.h>

#ifdef __FAST_MATH__
#error "the order of floating-point operations must be kept: compile without -ffast-math"
#endif

#ifdef REAL_DOUBLE
typedef double real;
#else
typedef float real;
#endif

#if defined(__AVX512F__)
#include <immintrin.h>
enum { VECTOR_BYTES = 64 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif
typedef real vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
enum { LANES = VECTOR_BYTES / sizeof(real) };

#define INLINE static inline __attribute__((always_inline))

/* a * b + c in every lane, rounded once. */
INLINE vector fused(vector a, vector b, vector c)
{
#if defined(__AVX512F__) && defined(REAL_DOUBLE)
    return (vector)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX512F__)
    return (vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(REAL_DOUBLE)
    return (vector)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__AVX2__)
    return (vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < (int)LANES; i++)
        c[i] = sizeof(real) == sizeof(double) ? (real)__builtin_fma(a[i], b[i], c[i])
                                              : (real)__builtin_fmaf((float)a[i], (float)b[i], (float)c[i]);
    return c;
#endif
}

/* Whether this processor runs the builds of a level of x86-64, 3 or 4; 0 is the generic build. */
int build_runs(int level)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int three = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const int four = three && __builtin_cpu_supports("avx512f") &&
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return level == 3 ? three : four;
#else
    return level == 0;
#endif
}

#endif
