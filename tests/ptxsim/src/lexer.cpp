#include "lexer.h"

#include "text.h"

namespace ptxsim {
namespace {

// The locale must not decide what a letter is.
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_name_start(char c) { return is_letter(c) || c == '_' || c == '$'; }
bool is_name(char c) { return is_name_start(c) || is_digit(c); }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  std::vector<Token> run() {
    std::vector<Token> tokens;
    tokens.reserve(text_.size() / 4 + 1);
    for (skip_blank(); at_ < text_.size(); skip_blank()) {
      const size_t begin = at_;
      const Token::Kind kind = scan();
      tokens.push_back({kind, text_.substr(begin, at_ - begin), line_});
    }
    tokens.push_back({Token::Kind::kEnd, text_.substr(text_.size()), line_});
    return tokens;
  }

 private:
  // Behind the end there are zeros: no test of the length before each look ahead.
  char at(size_t offset) const { return at_ + offset < text_.size() ? text_[at_ + offset] : '\0'; }

  void skip_blank() {
    while (at_ < text_.size()) {
      if (is_space(at(0))) {
        line_ += at(0) == '\n';
        ++at_;
      } else if (at(0) == '/' && at(1) == '/') {
        while (at_ < text_.size() && at(0) != '\n') ++at_;
      } else if (at(0) == '/' && at(1) == '*') {
        const size_t end = text_.find("*/", at_ + 2);
        if (end == std::string_view::npos) fail_at(line_, "the comment '/*' has no end");
        for (; at_ < end + 2; ++at_) line_ += at(0) == '\n';
      } else {
        return;
      }
    }
  }

  Token::Kind scan() {
    const char c = at(0);
    if (is_name_start(c) || (c == '%' && is_name_start(at(1)))) {
      ++at_;
      skip_name();
      return Token::Kind::kWord;
    }
    // `.2d` is a modifier because it touches what is before it, `.5` is a number.
    const bool touches = at_ > 0 && is_name(text_[at_ - 1]);
    if (is_digit(c) || (c == '.' && is_digit(at(1)) && !touches)) return number();
    if (c == '.' && is_name(at(1))) {
      ++at_;
      skip_name();
      while (at(0) == ':' && at(1) == ':' && is_name(at(2))) {
        at_ += 2;
        skip_name();
      }
      return Token::Kind::kDot;
    }
    if (c == '"') return string();
    static constexpr std::string_view kPairs[] = {"<<", ">>", "<=", ">=", "==", "!=", "&&", "||"};
    for (std::string_view pair : kPairs) {
      if (c == pair[0] && at(1) == pair[1]) {
        at_ += 2;
        return Token::Kind::kSymbol;
      }
    }
    constexpr std::string_view kSingles = "{}()[]<>,;:@!|&^~+-*/%=?.";
    if (kSingles.find(c) == std::string_view::npos)
      fail_at(line_, "got the character '" + std::string(1, c) + "', which PTX does not have");
    ++at_;
    return Token::Kind::kSymbol;
  }

  Token::Kind number() {
    const size_t begin = at_;
    if (at(0) == '0' && is_letter(at(1)) && at(1) != 'e' && at(1) != 'E') {
      skip_name();  // 0x, 0b, 0f, 0d; what the letters mean is checked with the value
      return Token::Kind::kNumber;
    }
    while (is_digit(at(0))) ++at_;
    if (at(0) == '.') ++at_;
    while (is_digit(at(0))) ++at_;
    if (at(0) == 'e' || at(0) == 'E') {
      ++at_;
      if (at(0) == '+' || at(0) == '-') ++at_;
      while (is_digit(at(0))) ++at_;
    }
    if (at(0) == 'U') ++at_;
    if (is_name(at(0))) {
      skip_name();
      fail_at(line_, "'" + std::string(text_.substr(begin, at_ - begin)) + "' is not a number");
    }
    return Token::Kind::kNumber;
  }

  Token::Kind string() {
    const size_t begin = at_++;
    for (; at(0) != '"'; ++at_) {
      if (at(0) == '\\') ++at_;
      if (at_ >= text_.size() || at(0) == '\n')
        fail_at(line_,
                "the string " + std::string(text_.substr(begin, at_ - begin)) + " has no end");
    }
    ++at_;
    return Token::Kind::kString;
  }

  void skip_name() {
    while (is_name(at(0))) ++at_;
  }

  std::string_view text_;
  size_t at_ = 0;
  uint32_t line_ = 1;
};

}  // namespace

std::vector<Token> tokenize(std::string_view text) { return Lexer(text).run(); }

const Token& Cursor::take() {
  const Token& token = here();
  if (token.kind != Token::Kind::kEnd) ++at_;
  return token;
}

const Token& Cursor::take(Token::Kind kind, const char* expected) {
  if (!is(kind)) fail_here(expected);
  return take();
}

bool Cursor::accept(std::string_view text) {
  if (!is(text)) return false;
  take();
  return true;
}

void Cursor::expect(std::string_view text) {
  if (!accept(text)) fail_here("'" + std::string(text) + "'");
}

void Cursor::fail_here(const std::string& expected) const {
  const std::string got =
      is(Token::Kind::kEnd) ? "the end of the text" : "'" + std::string(here().text) + "'";
  fail_at(here().line, "expected " + expected + ", got " + got);
}

std::string on_one_line(const Token& first, const Token& last) {
  std::string line;
  const char* end = nullptr;  // of the token before
  for (const Token* token = &first; token <= &last; ++token) {
    if (end != nullptr && token->text.data() != end) line += ' ';
    line += token->text;
    end = token->text.data() + token->text.size();
  }
  return line;
}

void fail_at(uint32_t line, const std::string& what) {
  throw SyntaxError("PTX line " + std::to_string(line) + ": " + what);
}

}  // namespace ptxsim
