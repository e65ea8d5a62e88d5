// Cookies makes cookies.txt: tokens signed by Hadoop's own classes, each without
// and with a time until which it may lie idle. Given signed tokens as arguments,
// it verifies them and prints what they say.
import org.apache.hadoop.security.authentication.util.*;
import org.apache.hadoop.security.authentication.server.AuthenticationToken;
import java.util.*;
import javax.servlet.ServletContext;
public class Cookies {
  static class Fixed extends SignerSecretProvider {
    byte[] s;
    Fixed(String t) { s = t.getBytes(java.nio.charset.StandardCharsets.UTF_8); }
    public void init(Properties c, ServletContext x, long v) {}
    public byte[] getCurrentSecret() { return s; }
    public byte[][] getAllSecrets() { return new byte[][]{s}; }
  }
  public static void main(String[] a) throws Exception {
    Signer signer = new Signer(new Fixed("a secret of the test\n"));
    if (a.length == 0) {
      for (String[] t : new String[][]{{"alice","alice@EXAMPLE.COM","kerberos-dt"},{"hdfs","nn/h1.example.com@EXAMPLE.COM","kerberos-dt"},{"ünï","ünï/x@EXAMPLE.COM","kerberos"}}) {
        AuthenticationToken k = new AuthenticationToken(t[0], t[1], t[2]);
        k.setExpires(1795478610857L);
        System.out.println(signer.sign(k.toString()));
        k.setMaxInactives(1795475310857L);
        k.setExpires(1795478610857L);
        System.out.println(signer.sign(k.toString()));
      }
    }
    for (String s : a) {
      AuthenticationToken k = AuthenticationToken.parse(signer.verifyAndExtract(s));
      System.out.println(k.getUserName() + " " + k.getName() + " " + k.getType() + " " + k.getExpires() + " " + k.getMaxInactives());
    }
  }
}
