#include "constant.h"

#include <charconv>
#include <cstring>
#include <limits>

namespace ptxsim {
namespace {

[[noreturn]] void fail_number(const Token& token) {
  fail_at(token.line, "'" + std::string(token.text) + "' is not a number that fits in 64 bits");
}

uint64_t digits(const Token& token, std::string_view text, int base) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) fail_number(token);
  return value;
}

Constant number(const Token& token) {
  std::string_view text = token.text;
  const char prefix = text.size() > 1 && text[0] == '0' ? text[1] : '\0';
  if (prefix == 'f' || prefix == 'F' || prefix == 'd' || prefix == 'D') {
    const uint8_t bits = prefix == 'f' || prefix == 'F' ? 32 : 64;
    if (text.size() != 2u + bits / 4u)
      fail_at(token.line, "'" + std::string(text) + "' must have " + std::to_string(bits / 4) +
                              " hexadecimal digits");
    return {digits(token, text.substr(2), 16), false, bits};
  }
  const bool hex = prefix == 'x' || prefix == 'X';
  if (!hex && text.find_first_of(".eE") != std::string_view::npos) {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) fail_number(token);
    Constant result{0, false, 64};
    std::memcpy(&result.bits, &value, sizeof value);
    return result;
  }
  const bool suffix = text.back() == 'U';
  if (suffix) text.remove_suffix(1);
  const bool binary = prefix == 'b' || prefix == 'B';
  const int base = hex ? 16 : binary ? 2 : text.size() > 1 && text[0] == '0' ? 8 : 10;
  const uint64_t value = digits(token, text.substr(hex || binary ? 2 : 0), base);
  return {value, suffix || value > uint64_t{std::numeric_limits<int64_t>::max()}, 0};
}

int precedence(std::string_view symbol) {
  if (symbol == "||") return 1;
  if (symbol == "&&") return 2;
  if (symbol == "|") return 3;
  if (symbol == "^") return 4;
  if (symbol == "&") return 5;
  if (symbol == "==" || symbol == "!=") return 6;
  if (symbol == "<" || symbol == ">" || symbol == "<=" || symbol == ">=") return 7;
  if (symbol == "<<" || symbol == ">>") return 8;
  if (symbol == "+" || symbol == "-") return 9;
  if (symbol == "*" || symbol == "/" || symbol == "%") return 10;
  return 0;
}
constexpr int kProduct = 10;

void require_integer(const Token& symbol, const Constant& value) {
  if (value.float_bits != 0)
    fail_at(symbol.line,
            "'" + std::string(symbol.text) + "' of floating-point constants is not supported");
}

Constant binary(const Token& symbol, const Constant& left, const Constant& right) {
  require_integer(symbol, left);
  require_integer(symbol, right);
  const std::string_view op = symbol.text;
  const uint64_t a = left.bits, b = right.bits;
  const auto sa = static_cast<int64_t>(a), sb = static_cast<int64_t>(b);
  const bool wide = left.is_unsigned || right.is_unsigned;
  // Sums and products have the same bits whether they are signed or not.
  if (op == "+") return {a + b, wide, 0};
  if (op == "-") return {a - b, wide, 0};
  if (op == "*") return {a * b, wide, 0};
  if (op == "&") return {a & b, wide, 0};
  if (op == "|") return {a | b, wide, 0};
  if (op == "^") return {a ^ b, wide, 0};
  if (op == "==") return {a == b, false, 0};
  if (op == "!=") return {a != b, false, 0};
  if (op == "&&") return {a != 0 && b != 0, false, 0};
  if (op == "||") return {a != 0 || b != 0, false, 0};
  if (op == "<") return {wide ? a < b : sa < sb, false, 0};
  if (op == ">") return {wide ? a > b : sa > sb, false, 0};
  if (op == "<=") return {wide ? a <= b : sa <= sb, false, 0};
  if (op == ">=") return {wide ? a >= b : sa >= sb, false, 0};
  if (op == "<<" || op == ">>") {
    if (b > 63)
      fail_at(symbol.line, "a constant is shifted with '" + std::string(op) + "' by more than 63");
    if (op == "<<") return {a << b, left.is_unsigned, 0};
    return {left.is_unsigned ? a >> b : static_cast<uint64_t>(sa >> b), left.is_unsigned, 0};
  }
  // The one quotient that does not fit would trap.
  const bool overflow = !wide && sa == std::numeric_limits<int64_t>::min() && sb == -1;
  if (b == 0 || overflow)
    fail_at(symbol.line, "the result of '" + std::string(op) + "' in a constant does not exist");
  if (op == "/") return {wide ? a / b : static_cast<uint64_t>(sa / sb), wide, 0};
  return {wide ? a % b : static_cast<uint64_t>(sa % sb), wide, 0};
}

Constant unary(Cursor& at) {
  const Token& token = at.here();
  if (at.accept("-")) {
    Constant value = unary(at);
    if (value.float_bits != 0)
      value.bits ^= uint64_t{1} << (value.float_bits - 1);
    else
      value.bits = 0 - value.bits;
    return value;
  }
  if (at.accept("+")) return unary(at);
  if (at.accept("~") || at.accept("!")) {
    const Constant value = unary(at);
    require_integer(token, value);
    if (token.text == "!") return {value.bits == 0, false, 0};
    return {~value.bits, value.is_unsigned, 0};
  }
  if (at.accept("(")) {
    const bool to_unsigned = at.accept(".u64");
    if (to_unsigned || at.accept(".s64")) {
      at.expect(")");
      const Constant value = unary(at);
      require_integer(token, value);
      return {value.bits, to_unsigned, 0};
    }
    const Constant value = constant(at);
    at.expect(")");
    return value;
  }
  if (at.accept("WARP_SZ")) return {32, false, 0};
  return number(at.take(Token::Kind::kNumber, "a constant"));
}

// Operators that bind at least as tightly as `least`.
Constant operators(Cursor& at, int least) {
  Constant left = unary(at);
  for (int level = precedence(at.here().text); level != 0 && level >= least;
       level = precedence(at.here().text)) {
    const Token& symbol = at.take();
    left = binary(symbol, left, operators(at, level + 1));
  }
  return left;
}

}  // namespace

Constant term(Cursor& at) { return unary(at); }

Constant constant(Cursor& at) {
  const Constant condition = operators(at, 1);
  const Token& symbol = at.here();
  if (!at.accept("?")) return condition;
  require_integer(symbol, condition);
  const Constant yes = constant(at);
  at.expect(":");
  const Constant no = constant(at);
  return condition.bits != 0 ? yes : no;
}

uint64_t offset(Cursor& at) {
  uint64_t sum = 0;
  while (at.is("+") || at.is("-")) {
    const Token& symbol = at.take();
    sum = binary(symbol, {sum, false, 0}, operators(at, kProduct)).bits;
  }
  return sum;
}

}  // namespace ptxsim
