// PTX text as tokens. They are views of the text, which must outlive them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ptxsim {

struct Token {
  enum class Kind : uint8_t {
    kWord,    // name, %name, $name, _
    kDot,     // .name, with the dot: a directive or a modifier, `.L2::128B` included
    kNumber,  // 12, 0x1FU, 0f3F800000, 1.5e-3
    kString,  // with its quotes, so that "{" is not taken for a brace
    kSymbol,  // one or two characters
    kEnd,
  };
  Kind kind;
  std::string_view text;
  uint32_t line;
};

// The last token is kEnd. Throws SyntaxError.
std::vector<Token> tokenize(std::string_view text);

// A place in the tokens.
class Cursor {
 public:
  explicit Cursor(const std::vector<Token>& tokens) : at_(tokens.data()) {}

  const Token& here() const { return *at_; }
  const Token& ahead() const { return at_[here().kind != Token::Kind::kEnd]; }
  const Token& behind() const { return at_[-1]; }  // only after the first take()
  bool is(std::string_view text) const { return here().text == text; }
  bool is(Token::Kind kind) const { return here().kind == kind; }

  const Token& take();
  const Token& take(Token::Kind kind, const char* expected);
  bool accept(std::string_view text);
  void expect(std::string_view text);
  [[noreturn]] void fail_here(const std::string& expected) const;

 private:
  const Token* at_;
};

// The tokens from `first` to `last`, which lie in one array, as they were written, but without
// comments and with each run of white space as one space.
std::string on_one_line(const Token& first, const Token& last);

[[noreturn]] void fail_at(uint32_t line, const std::string& what);

}  // namespace ptxsim
