// A CUDA device on a machine without one: its memory is the host's and its operators run on CPU, but it is told apart
// as a GPU is. Tensors of two devices in one operator are refused, and so is what CUDA's attention kernel cannot read.
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
#include <set>
#include <tuple>

namespace {

using at::IntArrayRef;
using at::Tensor;
using std::optional;

const c10::Device kHere(c10::DeviceType::CUDA, 0);
const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

void release(void* data) { c10::free_cpu(data); }

struct Allocator final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &release, kHere};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(c10::DeviceType::CUDA, &allocator)

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::Stream stream() const { return c10::Stream(c10::Stream::DEFAULT, kHere); }
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return kHere; }
  c10::Device getDevice() const override { return kHere; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// The same memory, seen from CPU.
Tensor on_cpu(const Tensor& x) {
  if (!x.defined() || x.device().is_cpu()) return x;
  c10::Storage storage(c10::Storage::use_byte_size_t(), x.storage().nbytes(),
      at::DataPtr(x.storage().mutable_data(), c10::DeviceType::CPU), nullptr, false);
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), x.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(x.sizes(), x.strides());
  made.unsafeGetTensorImpl()->set_storage_offset(x.storage_offset());
  if (x.is_conj()) made._set_conj(true);
  if (x.is_neg()) made._set_neg(true);
  return made;
}

Tensor empty(IntArrayRef size, optional<at::ScalarType> dtype, optional<at::Layout>, optional<at::Device>,
    optional<bool>, optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, kKeys, c10::dtype_or_default(dtype), format);
}
Tensor empty_strided(IntArrayRef size, IntArrayRef stride, optional<at::ScalarType> dtype, optional<at::Layout>,
    optional<at::Device>, optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, kKeys, c10::dtype_or_default(dtype));
}

Tensor& copy_(Tensor& self, const Tensor& from, bool) {
  auto here = on_cpu(self);
  here.copy_(on_cpu(from));
  return self;
}
Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}
Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}
at::Scalar item(const Tensor& x) { return at::_local_scalar_dense(on_cpu(x)); }

const Tensor& resize_(const Tensor& self, IntArrayRef size, optional<at::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  int64_t count = impl->storage_offset() + c10::multiply_integers(size);
  size_t bytes = count * impl->dtype().itemsize(), before = impl->storage().nbytes();
  if (bytes > before) {
    auto grown = allocator.allocate(bytes);
    if (before) std::memcpy(grown.get(), impl->storage().data(), before);
    impl->unsafe_storage().set_data_ptr_noswap(std::move(grown));
    impl->unsafe_storage().set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(size);
  if (format) impl->empty_tensor_restride(*format);
  return self;
}
Tensor& set_storage(Tensor& self, at::Storage from, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(from));
  impl->set_sizes_and_strides(size, stride.empty() ? at::detail::defaultStrides(size) : stride.vec());
  impl->set_storage_offset(offset);
  return self;
}
Tensor& set_tensor(Tensor& self, const Tensor& from) {
  return set_storage(self, from.storage(), from.storage_offset(), from.sizes(), from.strides());
}

Tensor view(const Tensor& x, IntArrayRef size) { return at::native::view(x, size); }
Tensor as_strided(const Tensor& x, IntArrayRef size, IntArrayRef stride, optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(x, size, stride, offset);
}
Tensor reshape_alias(const Tensor& x, IntArrayRef size, IntArrayRef stride) {
  return at::native::_reshape_alias(x, size, stride);
}
Tensor as_complex(const Tensor& x) { return at::native::view_as_complex(x); }
Tensor as_real(const Tensor& x) { return at::native::view_as_real(x); }
Tensor unfold(const Tensor& x, int64_t axis, int64_t size, int64_t step) {
  return at::native::unfold(x, axis, size, step);
}
Tensor view_dtype(const Tensor& x, at::ScalarType dtype) { return at::native::view_dtype(x, dtype); }

// Numbers and indices may lie elsewhere, as with CUDA.
void same_device(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  static const std::set<std::string> indexed = {"aten::index.Tensor", "aten::index_put_", "aten::index_put",
      "aten::_index_put_impl_", "aten::_unsafe_index.Tensor", "aten::_unsafe_index_put", "aten::_to_copy"};
  const auto& name = op.schema().operator_name();
  const auto full = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
  if (indexed.count(full)) return;
  bool cpu = false, gpu = false;
  auto look = [&](const Tensor& x) {
    if (!x.defined()) return;
    if (x.is_cuda()) gpu = true;
    else if (x.dim() > 0) cpu = true;
  };
  for (const auto& value : torch::jit::last(stack, op.schema().arguments().size())) {
    if (value.isTensor()) look(value.toTensor());
    else if (value.isList())
      for (const at::IValue one : value.toList())
        if (one.isTensor()) look(one.toTensor());
  }
  TORCH_CHECK(!(cpu && gpu), "Expected all tensors to be on the same device, found cuda:0 and cpu in ", full);
}
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  same_device(op, *stack);
  at::native::cpu_fallback(op, stack);
}

int64_t choose_sdp(const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&, double, bool,
    optional<double>, bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

// As CUDA's kernel: keys of a mask side by side, its rows from multiples of 16 bytes on, 32 rows of log-sum-exp a time.
std::tuple<Tensor, Tensor, Tensor, Tensor> efficient(const Tensor& q, const Tensor& k, const Tensor& v,
    const optional<Tensor>& bias, bool, double dropout, bool causal, optional<double> scale) {
  TORCH_CHECK(q.dim() == 4 && dropout == 0.0 && !causal);
  const auto kind = q.scalar_type();
  TORCH_CHECK(kind == at::kFloat || kind == at::kHalf || kind == at::kBFloat16, "expected float32, float16 or bfloat16");
  for (const auto& x : {q, k, v}) {
    TORCH_CHECK(x.is_cuda() && x.stride(-1) == 1 && x.scalar_type() == kind, "q, k, v: another device, dtype or order");
    for (int64_t axis = 0; axis < 3; axis++)
      TORCH_CHECK(x.size(axis) <= 1 || x.stride(axis) % 4 == 0, "q, k or v is not correctly aligned");
  }
  auto scores = at::matmul(on_cpu(q).to(at::kFloat), on_cpu(k).to(at::kFloat).transpose(-1, -2));
  scores = scores * scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(-1))));
  if (bias && bias->defined()) {
    const auto& b = *bias;
    const int64_t each = 16 / b.element_size();
    TORCH_CHECK(b.is_cuda() && b.scalar_type() == kind, "attn_bias: another device or dtype");
    TORCH_CHECK(b.sizes() == scores.sizes() && b.stride(-1) == 1, "attn_bias: not whole, or keys not side by side");
    for (int64_t axis = 0; axis < 3; axis++)
      TORCH_CHECK(b.size(axis) <= 1 || b.stride(axis) % each == 0, "attn_bias is not correctly aligned");
    TORCH_CHECK(b.storage_offset() % each == 0, "attn_bias is not correctly aligned");
    scores = scores + on_cpu(b).to(at::kFloat);
  }
  auto lse = scores.logsumexp(-1);
  lse.masked_fill_(lse == -INFINITY, 0.0);  // a row that sees nothing: 0 and 0
  auto out = at::matmul((scores - lse.unsqueeze(-1)).exp(), on_cpu(v).to(at::kFloat)).to(kind);
  out = out.transpose(1, 2).contiguous().transpose(1, 2);
  lse = at::constant_pad_nd(lse, {0, (32 - q.size(2) % 32) % 32}, INFINITY);
  auto seed = at::zeros({}, at::kLong).to(kHere);
  return {out.to(kHere), lse.to(kHere), seed, seed};
}

Tensor depthwise(const Tensor& x, const Tensor& weight, IntArrayRef, const optional<Tensor>& bias, IntArrayRef stride,
    IntArrayRef padding, IntArrayRef dilation) {
  optional<Tensor> added;
  if (bias && bias->defined()) added = on_cpu(*bias);
  std::vector<int64_t> none(stride.size(), 0);
  return at::convolution(on_cpu(x), on_cpu(weight), added, stride, padding, dilation, false, none, x.size(1)).to(kHere);
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("copy_", TORCH_FN(copy_));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", TORCH_FN(item));
  m.impl("resize_", TORCH_FN(resize_));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  m.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  m.impl("view", TORCH_FN(view));
  m.impl("view.dtype", TORCH_FN(view_dtype));
  m.impl("as_strided", TORCH_FN(as_strided));
  m.impl("_reshape_alias", TORCH_FN(reshape_alias));
  m.impl("view_as_complex", TORCH_FN(as_complex));
  m.impl("view_as_real", TORCH_FN(as_real));
  m.impl("unfold", TORCH_FN(unfold));
  m.impl("_fused_sdp_choice", TORCH_FN(choose_sdp));
  m.impl("_scaled_dot_product_efficient_attention", TORCH_FN(efficient));
  m.impl("_conv_depthwise2d", TORCH_FN(depthwise));
  m.impl("conv_depthwise3d", TORCH_FN(depthwise));
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose_sdp);
}
