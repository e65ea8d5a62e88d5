// Base64 makes base64.txt: what hadoop-auth's decoder (new Base64(0) of
// commons-codec 1.15) makes of the texts that its lines hold, as
// "text TAB hexadecimal digits". Run it with commons-codec's jar.
import java.nio.charset.StandardCharsets;
public class Base64 {
  public static void main(String[] a) {
    byte[] all = new byte[256];
    for (int i = 0; i < 256; i++) all[i] = (byte) (255 - i);
    String std = java.util.Base64.getEncoder().encodeToString(all), url = java.util.Base64.getUrlEncoder().withoutPadding().encodeToString(all);
    for (String text : new String[]{std, url, std.substring(0, 21) + "-_" + url.substring(23), "YII=", "YIJ", "YI", "Y", "YIIC=garbage", "Y I?I!C", "YII*-_+/", "?", "=", "YIIB====YIIB", "-_-_-", "YIIü"}) {
      StringBuilder hex = new StringBuilder();
      for (byte b : new org.apache.commons.codec.binary.Base64(0).decode(text)) hex.append(String.format("%02x", b));
      System.out.println(text + "\t" + hex);
    }
  }
}
